"""Levels of the features in every study and technical batch, around any likelihood."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.likelihoods import ALL_FEATURES, Features, Likelihood, ObservedBatch, by_study


class StudyEffects(Likelihood):
    r"""Likelihood with an intercept of each feature in each study and technical batch.

    .. math:: x_{ij} \sim p(x \mid \eta_{ij} + \ell_{m_i j} + b_{t_i j}), \qquad b_{0 j} = 0

    The intercepts have flat priors. They take up differences of means alone: variation that only
    some studies have is a matter of factors. An unknown study (index -1) has the mean of the known
    intercepts.

    Parameters
    ----------
    likelihood
        Distribution p of the features.
    n_features
        Number of features, G.
    n_studies
        Number of studies with intercepts, M; 1 for none.
    n_nuisance_levels
        Number of technical batches, T, whose first is the reference; 0 without them.

    References
    ----------
    Nonlinear multi-study factor analysis (Moran and Krishnan, 2026); batches are our addition.
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
        self.study_intercept = self.nuisance = None
        if n_studies > 1:
            self.study_intercept = nn.Parameter(torch.zeros(n_studies, n_features))  # l, (M, G)
        if n_nuisance_levels > 1:
            self.nuisance = nn.Parameter(torch.zeros(n_nuisance_levels - 1, n_features))  # b

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Distribution of the features around eta and the intercepts."""
        return self.base(eta + self._intercepts(batch, features), batch, features)

    @torch.no_grad()
    def initialize(self, batch: ObservedBatch) -> None:
        """Start the intercepts at the location of each study, batches at none."""
        self.base.initialize(batch)
        if self.study_intercept is None:
            return
        center, _ = self.base.linear_predictor_moments(batch)
        for m, rows in enumerate(rows_by_study(batch, len(self.study_intercept))):
            self.study_intercept[m] = self.base.location(rows) - center

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
        """Prior of the likelihood's own parameters."""
        return self.base.log_prior()

    def _intercepts(self, batch: ObservedBatch, features: Features) -> Tensor | float:
        found: Tensor | float = 0.0
        if self.study_intercept is not None:
            found = by_study(self.study_intercept, batch, features)
        if self.nuisance is None:
            return found
        level = batch.nuisance
        if level is None:
            raise ValueError(f"{len(self.nuisance) + 1} batches need batch.nuisance, got None.")
        return found + nn.functional.pad(self.nuisance[:, features], (0, 0, 1, 0))[level]


def rows_by_study(batch: ObservedBatch, n_studies: int) -> list[ObservedBatch]:
    """Observations of each study.

    Raises
    ------
    ValueError
        If a study has none, or the batch does not say which is which.
    """
    if batch.study is None:
        raise ValueError(f"{n_studies} studies need batch.study, got None.")
    found = [batch.rows(batch.study == m) for m in range(n_studies)]
    if empty := [m for m, rows in enumerate(found) if not len(rows.x)]:
        raise ValueError(
            f"every study needs observations, but of {n_studies} studies {empty} have none among "
            f"the {len(batch.x)} that starting values are computed from."
        )
    return found
