"""Normal features."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from probinterp.likelihoods.interface import (
    ALL_FEATURES,
    SMALLEST_SCALE,
    Features,
    Likelihood,
    ObservedBatch,
    by_study,
    one_or_each,
)
from probinterp.masks import complete_or_masked, filled, std_mean

INITIAL_SCALE = 0.3  # of a standard deviation; 1 makes posteriors collapse


class GaussianLikelihood(Likelihood):
    r"""Normal features with one scale each, :math:`x_{ij} \sim N(\eta_{ij}, \sigma_j^2)`.

    The encoder sees standardised features.

    Parameters
    ----------
    n_features
        Number of features, G.
    degrees
        Degrees of freedom nu of an inverse gamma prior on the variances,
        :math:`\sigma_j^2 \sim \mathrm{IG}(\nu/2, \nu\xi/2)`, with xi set from the data so that
        :math:`P(\sigma_j < \hat s) = 0.9` for the 5 % quantile s of the features' standard
        deviations; None for a flat prior.
    n_studies
        Number of studies with a scale of their own, M; 1 for one scale a feature.
    """

    separable = True
    support = constraints.real_vector

    def __init__(
        self, n_features: int, *, degrees: float | None = None, n_studies: int = 1
    ) -> None:
        super().__init__()
        if degrees is not None and degrees <= 0:
            raise ValueError(f"degrees must be positive or None, got {degrees}.")
        self.degrees = degrees
        self.prior_variance: Tensor
        self.register_buffer("prior_variance", torch.tensor(1.0))
        self.log_scale = nn.Parameter(one_or_each(n_studies, n_features))
        self.center: Tensor
        self.spread: Tensor
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each feature, shape (G,), or (M, G) with studies."""
        return self.log_scale.exp()

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Normal distribution around eta."""
        scale = by_study(self.log_scale, batch, features).exp()
        normal = dist.Normal(eta, scale).to_event(1)
        return complete_or_masked(normal, batch.mask, features)

    @torch.no_grad()
    def initialize(self, batch: ObservedBatch) -> None:
        """Start at 0.3 standard deviations, which avoids posterior collapse."""
        spread, center = std_mean(batch.x, batch.mask)
        self.center.copy_(center)
        self.spread.copy_(torch.where(spread > SMALLEST_SCALE, spread, 1.0))
        log_scale = (INITIAL_SCALE * spread).clamp_min(SMALLEST_SCALE).log()
        self.log_scale.copy_(log_scale.expand_as(self.log_scale))
        if self.degrees is not None:
            typical = spread.quantile(0.05).clamp_min(SMALLEST_SCALE)
            self.prior_variance.copy_(typical.square() * chi2_quantile(0.1, self.degrees))
            self.prior_variance.div_(self.degrees)

    def log_prior(self) -> Tensor | None:
        """Inverse gamma log density of the variances, up to a constant."""
        if self.degrees is None:
            return None
        excess = self.prior_variance * (-2 * self.log_scale).exp()
        return -((self.degrees + 2) * self.log_scale + self.degrees / 2 * excess).sum()

    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the features seen at initialisation."""
        return self.center, self.spread

    def location(self, batch: ObservedBatch) -> Tensor:
        """Mean of each feature."""
        return std_mean(batch.x, batch.mask)[1]

    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """Features standardised by the means and deviations seen at initialisation."""
        return filled((batch.x - self.center) / self.spread, batch.mask, 0.0)


def chi2_quantile(probability: float, degrees: float) -> float:
    """Quantile of the chi-square distribution, by bisection of the incomplete gamma function."""
    shape = torch.tensor(degrees / 2, dtype=torch.float64)
    low, high = 0.0, degrees + 40.0 * (1 + degrees**0.5)
    for _ in range(80):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, torch.tensor(middle / 2, dtype=torch.float64))
        low, high = (middle, high) if below < probability else (low, middle)
    return middle
