"""What a likelihood is, and what it asks of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from probinterp.configuration import Configured

SMALLEST_SCALE = 1e-3  # for features that do not vary


class ObservedBatch(Protocol):
    """What a likelihood asks of a batch."""

    @property
    def x(self) -> Tensor:
        """Observed features, shape (B, G)."""

    @property
    def size_factor(self) -> Tensor | None:
        """Relative library size, shape (B,), or None."""

    @property
    def mask(self) -> Tensor | None:
        """True where an entry of ``x`` is observed, shape (B, G), or None where all are."""

    @property
    def study(self) -> Tensor | None:
        """Index of the study, shape (B,), or None."""

    @property
    def nuisance(self) -> Tensor | None:
        """Index of the technical batch, shape (B,), or None."""

    def rows(self, index: slice | Tensor) -> ObservedBatch:
        """Observations ``index`` only."""


Features = slice | Tensor
ALL_FEATURES = slice(None)


class Likelihood(Configured, nn.Module, ABC):
    """Conditional distribution of the features given eta, with its own parameters.

    ``separable`` tells that the log density is a sum over features, so that a decoder may
    evaluate it for one block of features at a time; ``support`` is where observations may lie.
    """

    separable: bool
    support: constraints.Constraint

    @abstractmethod
    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Distribution of the features.

        Parameters
        ----------
        eta
            Output of the decoder for the chosen features, shape (..., B, G').
        batch
            The batch, with all features; its covariates are used, and ``x`` only for totals.
        features
            Slice or index (G',) of the features that ``eta`` stands for; default: all.

        Returns
        -------
        TorchDistribution
            With batch shape (..., B) and event shape (G',). Features that ``batch.mask`` leaves
            out do not enter its log density.
        """

    @abstractmethod
    def initialize(self, batch: ObservedBatch) -> None:
        """Set starting values of the parameters from data, in place."""

    @abstractmethod
    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """What an encoder should see of the batch, shape (B, G).

        Entries that are not observed stand at a typical value of their feature.
        """

    @abstractmethod
    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Where a decoder without knowledge should start: location and scale of eta, (G,)."""

    @abstractmethod
    def location(self, batch: ObservedBatch) -> Tensor:
        """Constant eta (G,) under which the batch has the means that it has, about."""

    def log_prior(self) -> Tensor | None:
        """Log prior density of the likelihood's own parameters, a scalar; None where flat."""
        return None


def by_study(table: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES) -> Tensor:
    """Values of each observation in a table of its study.

    Parameters
    ----------
    table
        One value a feature, (G,), or one for each study too, (M, G).
    batch
        The batch, with the studies of its observations; -1 is an unknown one, which gets the mean
        of the known ones.
    features
        Chosen features.

    Returns
    -------
    Tensor
        Shape (G',) for one value a feature, else (B, G').

    Raises
    ------
    ValueError
        If there are several studies and the batch does not say which.
    """
    if table.ndim == 1:
        return table[features]
    if batch.study is None:
        raise ValueError(f"values of {len(table)} studies need batch.study, got None.")
    chosen = table[:, features]
    return torch.cat([chosen, chosen.mean(0, keepdim=True)])[batch.study]  # row -1: the mean


def one_or_each(n_studies: int, n_features: int) -> Tensor:
    """Zeros for each feature, (G,), or for each study too, (M, G)."""
    return torch.zeros(n_features) if n_studies == 1 else torch.zeros(n_studies, n_features)
