"""Counts with library sizes."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.counts import NegativeBinomial, RoundedLogNormal
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

LARGEST_LOG_MEAN = 15.0  # exp(15) = 3.3e6 counts; keeps early steps of training finite
SMALLEST_MEAN = 1e-4  # for features without a count


class NegativeBinomialLikelihood(Likelihood):
    r"""Negative binomial counts with a library size offset.

    .. math:: x_{ij} \sim \mathrm{NB}(\mu_{ij}, r_j), \quad
        \mu_{ij} = s_i \exp(\ell_j + \eta_{ij}), \quad \mathrm{Var} = \mu + \mu^2 / r

    The encoder sees :math:`\log(1 + x_{ij} / s_i)`. The log mean is bounded above by 15.

    Parameters
    ----------
    n_features
        Number of features, G.
    n_studies
        Number of studies with a dispersion of their own, M; 1 for one a feature.
    standardize
        Whether the encoder sees the logarithms centred and scaled as at initialisation, which
        training needs where the features are thousands and their counts large.
    """

    separable = True
    support = NegativeBinomial.support

    def __init__(self, n_features: int, *, n_studies: int = 1, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        self.center: Tensor
        self.spread: Tensor
        if standardize:
            self.register_buffer("center", torch.zeros(n_features))
            self.register_buffer("spread", torch.ones(n_features))
        self.intercept = nn.Parameter(torch.zeros(n_features))
        self.log_inverse_dispersion = nn.Parameter(one_or_each(n_studies, n_features))

    @property
    def inverse_dispersion(self) -> Tensor:
        """Inverse dispersion r of each feature, shape (G,), or (M, G) with studies."""
        return self.log_inverse_dispersion.exp()

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Negative binomial distribution with mean ``size_factor * exp(intercept + eta)``."""
        offset = _size_factor(batch).log().unsqueeze(-1)
        log_mean = (eta + self.intercept[features] + offset).clamp(max=LARGEST_LOG_MEAN)
        inverse_dispersion = by_study(self.log_inverse_dispersion, batch, features).exp()
        counts = NegativeBinomial(log_mean, inverse_dispersion)
        return complete_or_masked(counts, batch.mask, features)

    @torch.no_grad()
    def initialize(self, batch: ObservedBatch) -> None:
        """Start at the log mean of x / s and at the moment estimate of r."""
        spread, mean = std_mean(self._normalized(batch), batch.mask)
        excess = (spread.square() - mean).clamp_min(torch.finfo(mean.dtype).tiny)
        self.intercept.copy_(mean.clamp_min(SMALLEST_MEAN).log())
        start = (mean.square() / excess).clamp(0.1, 100.0).log()
        self.log_inverse_dispersion.copy_(start.expand_as(self.log_inverse_dispersion))
        if self.standardize:
            spread, center = std_mean(self._normalized(batch).log1p(), batch.mask)
            self.center.copy_(center)
            self.spread.copy_(torch.where(spread > SMALLEST_SCALE, spread, 1.0))

    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Zero and one: the likelihood has an intercept of its own."""
        one = torch.ones_like(batch.x[0])
        return torch.zeros_like(one), one

    def location(self, batch: ObservedBatch) -> Tensor:
        """Log mean of x / s beyond the intercept."""
        mean = std_mean(self._normalized(batch), batch.mask)[1]
        return mean.clamp_min(SMALLEST_MEAN).log() - self.intercept

    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """Return log(1 + x / s), at the mean for eta = 0 where not observed."""
        if self.standardize:
            logged = self._normalized(batch).log1p()
            return filled((logged - self.center) / self.spread, batch.mask, 0.0)
        return filled(self._normalized(batch).log1p(), batch.mask, self.intercept.exp().log1p())

    @staticmethod
    def _normalized(batch: ObservedBatch) -> Tensor:
        return batch.x / _size_factor(batch).unsqueeze(-1)


class RoundedLogNormalLikelihood(Likelihood):
    r"""Counts through a Gaussian model of their shifted logarithm.

    .. math:: x_{ij} = \mathrm{round}\big(s_i \max(e^{y_{ij}} - 1, 0)\big), \quad
        y_{ij} \sim N(\ell_j + \eta_{ij}, \sigma_j^2)

    Makes a Gaussian model of log-normalised expression, for example factor analysis, comparable
    with count models. The encoder sees :math:`\log(1 + x_{ij} / s_i)`, centred and scaled.

    Parameters
    ----------
    n_features
        Number of features, G.
    """

    separable = True
    support = RoundedLogNormal.support

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.intercept = nn.Parameter(torch.zeros(n_features))
        self.log_scale = nn.Parameter(torch.zeros(n_features))
        self.center: Tensor
        self.spread: Tensor
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))

    def forward(
        self, eta: Tensor, batch: ObservedBatch, features: Features = ALL_FEATURES
    ) -> TorchDistribution:
        """Rounded log-normal distribution around ``intercept + eta``."""
        scale = self.log_scale[features].exp()
        counts = RoundedLogNormal(eta + self.intercept[features], scale, _size_factor(batch))
        return complete_or_masked(counts, batch.mask, features)

    @torch.no_grad()
    def initialize(self, batch: ObservedBatch) -> None:
        """Start at the means and standard deviations of log(1 + x / s)."""
        spread, center = std_mean(self._logged(batch), batch.mask)
        self.center.copy_(center)
        self.spread.copy_(torch.where(spread > SMALLEST_SCALE, spread, 1.0))
        self.intercept.copy_(center)
        self.log_scale.copy_(spread.clamp_min(SMALLEST_SCALE).log())

    def linear_predictor_moments(self, batch: ObservedBatch) -> tuple[Tensor, Tensor]:
        """Zero and one: the likelihood has an intercept of its own."""
        one = torch.ones_like(batch.x[0])
        return torch.zeros_like(one), one

    def location(self, batch: ObservedBatch) -> Tensor:
        """Mean of log(1 + x / s) beyond the intercept."""
        return std_mean(self._logged(batch), batch.mask)[1] - self.intercept

    def encoder_input(self, batch: ObservedBatch) -> Tensor:
        """Return log(1 + x / s), standardised as seen at initialisation."""
        return filled((self._logged(batch) - self.center) / self.spread, batch.mask, 0.0)

    @staticmethod
    def _logged(batch: ObservedBatch) -> Tensor:
        return (batch.x / _size_factor(batch).unsqueeze(-1)).log1p()


def _size_factor(batch: ObservedBatch) -> Tensor:
    if batch.size_factor is None:
        raise ValueError(
            "the negative binomial likelihood needs batch.size_factor, shape (B,), got None."
        )
    return batch.size_factor
