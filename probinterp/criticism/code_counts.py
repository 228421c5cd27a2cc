"""Numbers of active codes against what inclusion probabilities say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from probinterp.criticism.discrepancies.proxies import ChiSquare, NormQuantile, PitDistance
from probinterp.criticism.discrepancies.token_cells import CellDiscrepancy
from probinterp.criticism.multiplicity import adjust
from probinterp.criticism.token_layout import TokenLayout
from probinterp.criticism.token_residuals import TokenResiduals

CHUNK_ENTRIES = 2**24  # uniform numbers drawn at a time


class MeanValue(CellDiscrepancy):
    r"""Mean of all entries of a cell; of numbers of active codes, the mean L0.

    Parameters
    ----------
    layout
        How the tokens make up images.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__(layout, "mean_value")

    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """Sum and number of entries: sums of counts are whole numbers, so that ties stay ties."""
        total = tokens.x.sum((1, 3), dtype=torch.float64)
        count = torch.full_like(total, tokens.x.shape[1] * tokens.x.shape[3])
        return torch.stack([total, count], -1)

    def pool(self, summary: Tensor) -> Tensor:
        """Mean over all images."""
        return self.each(summary.sum(0))

    def each(self, summary: Tensor) -> Tensor:
        """Mean of every image."""
        return summary[..., 0] / summary[..., 1]


def code_count_suite(layout: TokenLayout) -> Mapping[str, CellDiscrepancy]:
    """Discrepancies of numbers of active codes (N, L, 1): mean, dispersion, shape, upper tail."""
    suite = (MeanValue(layout), ChiSquare(layout), PitDistance(layout), NormQuantile(layout, 0.99))
    return {one.__name__: one for one in suite}


class CodeCountDraws:
    r"""Numbers of active codes drawn from inclusion probabilities: Poisson-binomial counts.

    .. math:: c_{tl} = \sum_h \mathrm{Bernoulli}(\pi_{tlh}), \qquad
        E\, c = \sum_h \pi_h, \quad \mathrm{Var}\, c = \sum_h \pi_h (1 - \pi_h)

    For ``check_proxy(CodeCountDraws(inclusion), counts.unsqueeze(-1), layout,
    make_suite=code_count_suite)`` with ``counts`` (N, L) of hard codes or, on simulated data, of
    the true ones.

    Parameters
    ----------
    inclusion
        Posterior inclusion probabilities, shape (N, L, H).
    n_draws
        Number of draws, S.
    seed
        Same seed, same draws.

    Raises
    ------
    ValueError
        If shapes or numbers do not fit.
    """

    local, point_estimate = "covariates", False

    def __init__(self, inclusion: Tensor, n_draws: int = 200, seed: int = 0) -> None:
        _require_inclusion(inclusion)
        if not isinstance(n_draws, int) or n_draws < 1:
            raise ValueError(f"n_draws must be a positive integer, got {n_draws!r}.")
        self._inclusion, self.n_draws, self.seed = inclusion, n_draws, seed
        self._mean = inclusion.sum(-1, keepdim=True)
        self._deviation = (inclusion * (1 - inclusion)).sum(-1, keepdim=True).sqrt()
        self.reference = _CountDraw(self, seed)

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[_CountDraw]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.n_draws):
            yield _CountDraw(self, int(torch.randint(2**62, (), generator=generator)))

    def counts(self, generator: torch.Generator) -> Tensor:
        """Counts drawn with a generator, (N, L, 1)."""
        rows = max(1, CHUNK_ENTRIES // self._inclusion[0].numel())
        drawn = [
            (torch.empty_like(part).uniform_(generator=generator) < part).sum(-1, keepdim=True)
            for part in self._inclusion.split(rows)
        ]
        return torch.cat(drawn).to(self._inclusion.dtype)

    def law(self) -> Distribution:
        """Normal law with mean and variance of the counts."""
        return Independent(Normal(self._mean, self._deviation, validate_args=False), 2)


class _CountDraw:
    """One draw of the counts."""

    def __init__(self, draws: CodeCountDraws, seed: int) -> None:
        self._draws = draws
        self._generator = torch.Generator(draws._inclusion.device).manual_seed(seed)

    def replicate(self) -> Tensor:
        """Counts, (N, L, 1)."""
        return self._draws.counts(self._generator)

    def likelihood(self, x: Tensor) -> Distribution:
        """Normal law with the moments of the counts."""
        return self._draws.law()


class RateCheck(NamedTuple):
    r"""Aggregate posterior rates against prior rates, for every code; shapes (L, H).

    Parameters
    ----------
    posterior
        Mean inclusion probability over tokens.
    prior
        Prior rates.
    z
        Difference in standard errors over images; 0 where there is no difference, infinite where
        images do not vary.
    p
        Two-sided p-values, by Student's law with I - 1 degrees of freedom.
    p_adjusted
        Adjusted over all codes by Benjamini and Hochberg.
    """

    posterior: Tensor
    prior: Tensor
    z: Tensor
    p: Tensor
    p_adjusted: Tensor

    def summary(self, alpha: float = 0.05) -> dict[str, list[float]]:
        """By layer: mean rates (sums over codes, that is L0) and the share of codes that differ."""
        return {
            "posterior_l0": self.posterior.sum(-1).tolist(),
            "prior_l0": self.prior.sum(-1).tolist(),
            "share_off": (self.p_adjusted <= alpha).double().mean(-1).tolist(),
        }


def rate_check(inclusion: Tensor, prior_rate: Tensor, layout: TokenLayout) -> RateCheck:
    r"""Compare the aggregate posterior rate of every code with its prior rate.

    .. math:: z_{lh} = \frac{\bar\pi_{lh} - \rho_{lh}}
        {\mathrm{sd}_i(\bar\pi_{ilh}) / \sqrt I}

    with :math:`\bar\pi_{ilh}` the mean over the tokens of image i: images are the units.

    Parameters
    ----------
    inclusion
        Posterior inclusion probabilities, shape (N, L, H).
    prior_rate
        Prior rates, shape (L, H), or one that broadcasts to it.
    layout
        How the tokens make up images; at least two.

    Raises
    ------
    ValueError
        If shapes do not fit, or there is a single image.
    """
    from scipy.stats import t  # slow to import, seldom needed

    _require_inclusion(inclusion)
    if layout.n_images < 2:
        raise ValueError("a check of rates needs at least 2 images, got 1.")
    by_image = layout.by_image(inclusion).double().mean(1)  # (I, L, H)
    posterior, prior = by_image.mean(0), prior_rate.double().expand(by_image.shape[1:])
    difference = posterior - prior
    z = torch.where(difference == 0, 0.0, difference / (by_image.std(0) / layout.n_images**0.5))
    p = torch.as_tensor(2 * t.sf(z.abs().cpu().numpy(), layout.n_images - 1)).clamp(max=1)
    return RateCheck(posterior, prior, z, p, adjust(p.flatten()).reshape(p.shape))


def _require_inclusion(inclusion: Tensor) -> None:
    if inclusion.ndim != 3 or not bool(((inclusion >= 0) & (inclusion <= 1)).all()):
        raise ValueError(
            "inclusion must hold probabilities of shape (N, L, H), got shape "
            f"{tuple(inclusion.shape)}."
        )
