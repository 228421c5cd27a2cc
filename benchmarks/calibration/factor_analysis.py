"""Local latents: what a check of factor analysis sees by where the replicate's z comes from.

Factor analysis with known loadings and noise. New rows: z of the replicate from the prior or from
its posterior given the held-out row; data with the right or a wider distribution of z. Masked
cells: z from its posterior given the unmasked cells of the row. Expected: the prior mode is
calibrated and sees the wrong prior, the posterior mode is blind to it; on masked cells the
realised kind degenerates while plug-in and standardised discrepancies reject about 5 %.

    python benchmarks/calibration/factor_analysis.py --sets 300 --out factor_analysis.csv
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from study import arguments, one_column, rates, report
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from probinterp.criticism import (
    FunctionDraw,
    LocalDoubleUseWarning,
    PopPCResult,
    RegimeWarning,
    pop_pc,
)
from probinterp.criticism.discrepancies import mean_negative_log_likelihood

N_ROWS, N_FACTORS, NOISE = 200, 3, 1.0


class NewRows:
    """Draws of D data sets of new rows, parameters known; data of shape (N, D * G).

    ``local`` says where the replicate's z comes from; the likelihood has z integrated out.
    """

    def __init__(self, loadings: Tensor, x_new: Tensor, n_draws: int, local: str) -> None:
        self.loadings, self.n_draws, self.local = loadings, n_draws, local
        n_features, n_factors = loadings.shape
        self.shape = (len(x_new), -1, n_features)
        identity = torch.eye(n_factors, dtype=loadings.dtype)
        covariance = torch.linalg.inv(identity + loadings.mT @ loadings / NOISE**2)
        self.posterior_mean = x_new.view(self.shape) @ loadings @ covariance / NOISE**2
        self.posterior_root = torch.linalg.cholesky(covariance)
        diagonal = NOISE**2 * torch.eye(n_features, dtype=loadings.dtype)
        root = torch.linalg.cholesky(loadings @ loadings.mT + diagonal)
        zero = loadings.new_zeros(n_features)
        self.law = MultivariateNormal(zero, scale_tril=root, validate_args=False)
        self.reference = FunctionDraw(self.rows, self.marginal)

    def __iter__(self):
        return (FunctionDraw(self.rows, self.marginal) for _ in range(self.n_draws))

    def rows(self) -> Tensor:
        """New rows of all data sets."""
        z = torch.randn_like(self.posterior_mean)
        if self.local == "posterior":
            z = self.posterior_mean + z @ self.posterior_root.mT
        mean = z @ self.loadings.mT
        return (mean + NOISE * torch.randn_like(mean)).flatten(1)

    def marginal(self, x: Tensor) -> Distribution:
        """Marginal distribution of each row of each data set, z integrated out."""
        return self.law.expand((len(x), x.shape[1] // self.shape[-1]))

    def discrepancy(self, x: Tensor, draw: FunctionDraw) -> Tensor:
        """Mean marginal NLL, then the variance of the first feature, of each set: (2 D,)."""
        x_sets = x.view(self.shape)
        density = draw.likelihood(x).log_prob(x_sets).mean(0)
        return torch.cat([-density, x_sets[..., 0].var(0)])


def check_new_rows(
    local: str, factor_scale: float, n_features: int, n_sets: int, n_draws: int, seed: int
) -> PopPCResult:
    """Check data whose factors have sd ``factor_scale``; the model says 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    loadings = normal(n_features, N_FACTORS)
    mean = factor_scale * normal(N_ROWS, n_sets, N_FACTORS) @ loadings.mT
    x_new = (mean + NOISE * normal(N_ROWS, n_sets, n_features)).flatten(1)
    draws = NewRows(loadings, x_new, n_draws, local)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LocalDoubleUseWarning)
        return pop_pc(draws, x_new, draws.discrepancy, seed=seed)


class MaskedCells(NamedTuple):
    """Posterior of z given the unmasked cells, and the masked cells of D data sets."""

    mean: Tensor  # (D, N, K)
    root: Tensor  # (D, N, K, K)
    loadings: Tensor  # (G, K)
    mask: Tensor  # (D, N, G), True for masked cells; the same number in each data set
    x_new: Tensor  # (cells, D)

    def at(self, z: Tensor) -> Tensor:
        """Mean of the masked cells given z, shape (cells, D)."""
        return (z @ self.loadings.mT)[self.mask].view(len(z), -1).T.contiguous()

    def draw(self) -> FunctionDraw:
        """Draw at z from its posterior given the unmasked cells."""
        step = self.root @ torch.randn_like(self.mean).unsqueeze(-1)
        law = Normal(self.at(self.mean + step.squeeze(-1)), NOISE)
        return FunctionDraw(law.sample, lambda x: law)

    def reference(self, standardised: bool) -> FunctionDraw:
        """Draw at E[z], with the noise or the predictive standard deviation."""
        spread = (self.loadings @ self.root).square().sum(-1)[self.mask]
        scale = (NOISE**2 + standardised * spread.view(len(self.mean), -1).T).sqrt()
        law = Normal(self.at(self.mean), scale)
        return FunctionDraw(law.sample, lambda x: law)


def simulate_masked(n_masked: int, n_sets: int, seed: int, n_features: int = 20) -> MaskedCells:
    """Mask cells at random and compute the posterior of each row's factors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    loadings = normal(n_features, N_FACTORS)
    z = normal(n_sets, N_ROWS, N_FACTORS)
    x = z @ loadings.mT + NOISE * normal(n_sets, N_ROWS, n_features)
    order = torch.rand(n_sets, N_ROWS * n_features, generator=generator).argsort(1)
    mask = (order < n_masked).view(x.shape)
    seen = (~mask).double() / NOISE**2
    precision = torch.einsum("gk,dng,gl->dnkl", loadings, seen, loadings)
    covariance = torch.linalg.inv(precision + torch.eye(N_FACTORS, dtype=x.dtype))
    mean = (covariance @ ((x * seen) @ loadings).unsqueeze(-1)).squeeze(-1)
    x_new = x[mask].view(n_sets, -1).T.contiguous()
    return MaskedCells(mean, torch.linalg.cholesky(covariance), loadings, mask, x_new)


def negative_log_likelihood(x: Tensor, draw: FunctionDraw) -> Tensor:
    """Mean negative log likelihood of each data set, shape (D,)."""
    return -draw.likelihood(x).log_prob(x).mean(0)


def check_masked(cells: MaskedCells, kind: str, n_draws: int, seed: int) -> PopPCResult:
    """Check masked cells: kind "plugin", "standardised" or "realised"."""
    draws = (cells.draw() for _ in range(n_draws))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegimeWarning)
        if kind == "realised":
            return pop_pc(draws, cells.x_new, negative_log_likelihood, kind=kind, seed=seed)
        reference = cells.reference(standardised=kind == "standardised")
        return pop_pc(draws, cells.x_new, negative_log_likelihood, reference=reference, seed=seed)


def masked_regime(cells: MaskedCells, n_draws: int) -> float:
    """Regime number of the first data set alone."""
    draws = (one_column(cells.draw(), 0) for _ in range(n_draws))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegimeWarning)
        first = cells.x_new[:, :1]
        return pop_pc(draws, first, mean_negative_log_likelihood, kind="realised").regime


def main() -> None:
    options = arguments(__doc__, n_sets=300, n_draws=199)
    sets, draws, seed = options.sets, options.draws, options.seed
    rows = []
    for n_features in (20, 5):
        for scale in (1.0, 1.3):
            for local in ("prior", "posterior"):
                result = check_new_rows(local, scale, n_features, sets, draws, seed)
                case = f"new rows, G={n_features}, sd(z)={scale}"
                for name, part in (("NLL", slice(sets)), ("variance", slice(sets, None))):
                    settings = {"case": case, "check": f"{local}, {name}", "r": "-"}
                    rows.append(settings | rates(result, part))
    for n_masked in (40, 200, 800):
        cells = simulate_masked(n_masked, sets, seed)
        r = f"{masked_regime(cells, 400):.2f}"
        for kind in ("realised", "plugin", "standardised"):
            settings = {"case": f"{n_masked} masked cells", "check": kind, "r": r}
            rows.append(settings | rates(check_masked(cells, kind, draws, seed)))
    report(rows, options.out)


if __name__ == "__main__":
    main()
