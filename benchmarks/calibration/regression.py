"""Calibration of the three kinds on linear regression with its exact posterior.

Correct model, flat prior, noise with known sd 1; mean negative log likelihood. Expected: plug-in
and predictive kinds reject 5 %, the realised kind rejects more the larger its regime number r,
and the in-sample check with a plug-in discrepancy rejects far too often.

    python benchmarks/calibration/regression.py --sets 1000 --out regression.csv
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from study import arguments, one_column, rates, report
from torch import Tensor
from torch.distributions import Normal

from probinterp.criticism import FunctionDraw, PopPCResult, RegimeWarning, pop_pc, ppc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood

SIZES = ((100, 100, 1), (100, 100, 10), (100, 100, 40), (100, 20, 40), (400, 100, 40))


class Study(NamedTuple):
    """Exact posteriors of D regressions, and their observed and held-out data."""

    posterior_mean: Tensor  # (D, P)
    posterior_root: Tensor  # (D, P, P), root of the posterior covariance
    design_obs: Tensor  # (D, N, P)
    design_new: Tensor
    x_obs: Tensor  # (N, D)
    x_new: Tensor


def simulate(n_obs: int, n_new: int, dim: int, n_sets: int, seed: int) -> Study:
    """Draw designs, coefficients and data from the model; solve for the posteriors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    coefficients = normal(n_sets, dim, 1)
    design_obs, design_new = normal(n_sets, n_obs, dim), normal(n_sets, n_new, dim)
    x_obs = design_obs @ coefficients + normal(n_sets, n_obs, 1)
    x_new = design_new @ coefficients + normal(n_sets, n_new, 1)
    covariance = torch.linalg.inv(design_obs.mT @ design_obs)
    mean = (covariance @ (design_obs.mT @ x_obs)).squeeze(-1)
    root = torch.linalg.cholesky(covariance)
    return Study(mean, root, design_obs, design_new, x_obs.squeeze(-1).T, x_new.squeeze(-1).T)


def draw_at(coefficients: Tensor, design: Tensor) -> FunctionDraw:
    """Predictive draw of all D regressions at the given coefficients, shape (D, P)."""
    law = Normal((design @ coefficients.unsqueeze(-1)).squeeze(-1).T.contiguous(), 1.0)
    return FunctionDraw(law.sample, lambda x: law)


def posterior_draws(study: Study, design: Tensor, n_draws: int) -> Iterator[FunctionDraw]:
    """Draws from the exact posteriors, one at a time."""
    for _ in range(n_draws):
        step = study.posterior_root @ torch.randn_like(study.posterior_mean).unsqueeze(-1)
        yield draw_at(study.posterior_mean + step.squeeze(-1), design)


def negative_log_likelihood(x: Tensor, draw: FunctionDraw) -> Tensor:
    """Mean negative log likelihood of each data set, shape (D,)."""
    return -draw.likelihood(x).log_prob(x).mean(0)


def check(study: Study, kind: str, n_draws: int, seed: int) -> PopPCResult:
    """Check all data sets by one kind; the predictive kind sets 20 further draws aside."""
    options = {"kind": kind, "seed": seed}
    if kind == "plugin":
        options["reference"] = draw_at(study.posterior_mean, study.design_new)
    if kind == "predictive":
        options["n_reference"] = 20
    draws = posterior_draws(study, study.design_new, n_draws + options.get("n_reference", 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegimeWarning)
        return pop_pc(draws, study.x_new, negative_log_likelihood, **options)


def check_in_sample(study: Study, n_draws: int, seed: int) -> PopPCResult:
    """Classical check with a plug-in discrepancy, for contrast."""
    draws = posterior_draws(study, study.design_obs, n_draws)
    reference = draw_at(study.posterior_mean, study.design_obs)
    return ppc(draws, study.x_obs, negative_log_likelihood, reference=reference, seed=seed)


def regime(study: Study, n_draws: int) -> float:
    """Regime number of the first data set alone."""
    draws = (one_column(d, 0) for d in posterior_draws(study, study.design_new, n_draws))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegimeWarning)
        first = study.x_new[:, :1]
        result = pop_pc(draws, first, mean_negative_log_likelihood, kind="realised")
    return result.regime


def main() -> None:
    options = arguments(__doc__, n_sets=1000, n_draws=599)
    rows = []
    for n_obs, n_new, dim in SIZES:
        study = simulate(n_obs, n_new, dim, options.sets, options.seed)
        size = {"n_obs": n_obs, "n_new": n_new, "dim": dim, "r": regime(study, 400)}
        for kind in ("plugin", "predictive", "realised"):
            row = rates(check(study, kind, options.draws, options.seed))
            rows.append(size | {"kind": kind} | row)
        row = rates(check_in_sample(study, options.draws, options.seed))
        rows.append(size | {"kind": "ppc plugin"} | row)
    report(rows, options.out)


if __name__ == "__main__":
    main()
