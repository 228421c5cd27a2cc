"""Levels of the features in every study and technical batch, around any likelihood."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.likelihoods import ALL_FEATURES, Features, Likelihood, ObservedBatch

SMALLEST_SPREAD = 0.02  # of levels, in units of the linear predictor's scale


class GroupLevels(nn.Module):
    r"""Deviations of groups of observations from a common level, shrunk towards zero.

    .. math:: \ell_{mj} \sim N(0, \tau^2 s_j^2)

    The ratio :math:`\tau` is estimated once, from two halves of every group: errors of the halves
    are independent, so that the mean product of their deviations estimates :math:`\tau^2`.

    Parameters
    ----------
    n_groups, n_features
        Shape (M, G).
    """

    spread: Tensor

    def __init__(self, n_groups: int, n_features: int) -> None:
        super().__init__()
        self.deviation = nn.Parameter(torch.zeros(n_groups, n_features))  # l, (M, G)
        self.register_buffer("spread", torch.ones(n_features))  # tau s

    def forward(self, group: Tensor, features: Features) -> Tensor:
        """Deviations of each observation, (B, G'); zero for an unknown group, -1."""
        table = self.deviation[:, features]
        return torch.cat([table, torch.zeros_like(table[:1])])[group]

    def log_prior(self) -> Tensor:
        """Log density of the deviations, up to a constant."""
        return -0.5 * (self.deviation / self.spread).square().sum()

    @torch.no_grad()
    def initialize(
        self, groups: list[ObservedBatch], likelihood: Likelihood, scale: Tensor
    ) -> None:
        """Set spread and deviations from the observations of every group."""
        halves = [
            torch.stack([likelihood.location(rows.rows(slice(i, None, 2))) for rows in groups])
            for i in (0, 1)
        ]
        first, second = ((half - half.mean(0)) / scale for half in halves)
        ratio = len(groups) / (len(groups) - 1)
        variance = float((first * second).mean()) * ratio
        self.spread.copy_(math.sqrt(max(variance, SMALLEST_SPREAD**2)) * scale)
        error = (first - second).square().mean() / 4  # of the mean of both halves
        found = (first + second) / 2 * scale
        self.deviation.copy_(found * variance / (variance + error) if variance > 0 else 0 * found)


class StudyEffects(Likelihood):
    r"""Likelihood whose features have a level in each study and technical batch.

    .. math:: x_{ij} \sim p(x \mid \eta_{ij} + \ell_{m_i j} + b_{t_i j})

    The deviations :math:`\ell` and b have normal priors whose variances are estimated from the
    data: with few samples a study, unrestrained levels of thousands of features fit noise. They
    take up differences of means alone: variation that only some studies have is a matter of
    factors. An unknown study (index -1) deviates by nothing.

    Parameters
    ----------
    likelihood
        Distribution p of the features.
    n_features
        Number of features, G.
    n_studies
        Number of studies with levels, M; 1 for none.
    n_nuisance_levels
        Number of technical batches, T; 0 without them.

    References
    ----------
    Nonlinear multi-study factor analysis (Moran and Krishnan, 2026); priors and batches are ours.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        n_features: int,
        n_studies: int,
        n_nuisance_levels: int = 0,
    ) -> None:
        super().__init__()
        self.base = likelihood
        self.separable, self.support = likelihood.separable, likelihood.support
        self.studies = GroupLevels(n_studies, n_features) if n_studies > 1 else None
        self.batches = GroupLevels(n_nuisance_levels, n_features) if n_nuisance_levels > 1 else None

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Distribution of the features around eta and the levels."""
        if self.studies is not None:
            eta = eta + self.studies(_index(batch.study, "study"), features)
        if self.batches is not None:
            eta = eta + self.batches(_index(batch.nuisance, "nuisance"), features)
        return self.base(eta, batch, features)

    @torch.no_grad()
    def initialize(self, batch: ObservedBatch) -> None:
        """Start the levels at their shrunken means; those of batches within studies at zero."""
        self.base.initialize(batch)
        _, scale = self.base.linear_predictor_moments(batch)
        if self.studies is not None:
            groups = rows_by_group(batch, batch.study, len(self.studies.deviation), "study")
            self.studies.initialize(groups, self.base, scale)
        if self.batches is not None:
            n_levels = len(self.batches.deviation)
            groups = rows_by_group(batch, batch.nuisance, n_levels, "nuisance")
            self.batches.initialize(groups, self.base, scale)
            if self.studies is not None:  # the two overlap: let the fit divide them
                self.batches.deviation.zero_()

    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """What an encoder would see without studies."""
        return self.base.encoder_input(batch)

    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Those without studies."""
        return self.base.linear_predictor_moments(batch)

    def location(self, batch: ObservedBatch) -> Tensor:
        """That without studies."""
        return self.base.location(batch)

    def log_prior(self) -> Tensor | None:
        """Prior of the levels and of the likelihood's own parameters."""
        parts = [levels.log_prior() for levels in (self.studies, self.batches) if levels]
        own = self.base.log_prior()
        total = torch.stack([*parts, *([] if own is None else [own])])
        return total.sum() if len(total) else None


def rows_by_study(batch: ObservedBatch, n_studies: int) -> list[ObservedBatch]:
    """Observations of each study.

    Raises
    ------
    ValueError
        If a study has none, or the batch does not say which is which.
    """
    return rows_by_group(batch, batch.study, n_studies, "study")


def rows_by_group(
    batch: ObservedBatch, group: Tensor | None, n_groups: int, name: str
) -> list[ObservedBatch]:
    """Observations of each study or batch.

    Raises
    ------
    ValueError
        If one has none, or the batch does not say which is which.
    """
    index = _index(group, name)
    found = [batch.rows(index == m) for m in range(n_groups)]
    if empty := [m for m, rows in enumerate(found) if not len(rows.x)]:
        raise ValueError(
            f"every {name} needs observations, but of {n_groups} {empty} have none among the "
            f"{len(batch.x)} that starting values are computed from."
        )
    return found


def _index(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(f"a model of several groups needs batch.{name}, got None.")
    return values
