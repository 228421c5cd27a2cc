"""Binary features, and shares of a total."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from probinterp.counts import MultinomialCounts
from probinterp.likelihoods.interface import ALL_FEATURES, Features, Likelihood, ObservedBatch
from probinterp.masks import complete_or_masked, filled, std_mean


class BernoulliLikelihood(Likelihood):
    r"""Binary features, :math:`x_{ij} \sim \mathrm{Bernoulli}(\mathrm{sigmoid}(\eta_{ij}))`.

    Parameters
    ----------
    n_features
        Number of features, G; the likelihood has no parameter of its own.
    """

    separable = True
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Bernoulli distribution with logits eta."""
        return complete_or_masked(dist.Bernoulli(logits=eta).to_event(1), batch.mask, features)

    def initialize(self, batch: ObservedBatch) -> None:
        """Do nothing: there is no parameter."""

    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Zero and one: logits of probability one half."""
        one = torch.ones_like(batch.x[0])
        return torch.zeros_like(one), one

    def location(self, batch: ObservedBatch) -> Tensor:
        """Logit of the share of ones, a half counted on either side."""
        n_observed = len(batch.x) if batch.mask is None else batch.mask.sum(0)
        ones = std_mean(batch.x, batch.mask)[1] * n_observed
        return ((ones + 0.5) / (n_observed - ones + 0.5)).log()

    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """Return the features themselves, one half where not observed."""
        return filled(batch.x, batch.mask, 0.5)


class MultinomialLikelihood(Likelihood):
    r"""Multinomial counts, :math:`x_i \sim \mathrm{Mult}(n_i, \mathrm{softmax}(\eta_i))`.

    The total n of a row is its sum; the encoder sees the row-normalised counts. Masks are
    refused: a count that is left out would change the total that the others are conditional on.

    Parameters
    ----------
    n_features
        Number of features, G; the likelihood has no parameter of its own.
    """

    separable = False
    support = MultinomialCounts.support

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Multinomial distribution with the softmax over all features of eta."""
        if eta.shape[-1] != self.n_features:
            raise ValueError(
                f"the softmax needs all {self.n_features} features, got eta for {eta.shape[-1]}."
            )
        self._require_complete(batch)
        return MultinomialCounts(eta, batch.x.sum(-1))

    def initialize(self, batch: ObservedBatch) -> None:
        """Do nothing: there is no parameter."""
        self._require_complete(batch)

    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Zero and one: equal probabilities."""
        one = torch.ones_like(batch.x[0])
        return torch.zeros_like(one), one

    def location(self, batch: ObservedBatch) -> Tensor:
        """Log share of each feature, half a count added."""
        self._require_complete(batch)
        return (batch.x.sum(0) + 0.5).log()

    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """Return the share of each feature in its row; an empty row stays zero."""
        self._require_complete(batch)
        return batch.x / batch.x.sum(-1, keepdim=True).clamp_min(1.0)

    @staticmethod
    def _require_complete(batch: ObservedBatch) -> None:
        if batch.mask is not None:
            raise ValueError(
                "the multinomial likelihood is not a product over features and takes no "
                "batch.mask; hold out part of each row's counts instead."
            )
