"""Likelihoods of the observed features given the decoder's output eta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from probinterp.configuration import Configured
from probinterp.counts import MultinomialCounts, NegativeBinomial, RoundedLogNormal
from probinterp.masks import complete_or_masked, filled, std_mean

LARGEST_LOG_MEAN = 15.0  # exp(15) = 3.3e6 counts; keeps early steps of training finite
INITIAL_SCALE = 0.3  # of a standard deviation; 1 makes posteriors collapse
SMALLEST_SCALE = 1e-3  # for features that do not vary
SMALLEST_MEAN = 1e-4  # for features without a count


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
        self.log_scale = nn.Parameter(_zeros(n_studies, n_features))
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
        self.log_inverse_dispersion = nn.Parameter(_zeros(n_studies, n_features))

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


def _zeros(n_studies: int, n_features: int) -> Tensor:
    return torch.zeros(n_features) if n_studies == 1 else torch.zeros(n_studies, n_features)


def chi2_quantile(probability: float, degrees: float) -> float:
    """Quantile of the chi-square distribution, by bisection of the incomplete gamma function."""
    shape = torch.tensor(degrees / 2, dtype=torch.float64)
    low, high = 0.0, degrees + 40.0 * (1 + degrees**0.5)
    for _ in range(80):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, torch.tensor(middle / 2, dtype=torch.float64))
        low, high = (middle, high) if below < probability else (low, middle)
    return middle


def _size_factor(batch: ObservedBatch) -> Tensor:
    if batch.size_factor is None:
        raise ValueError(
            "the negative binomial likelihood needs batch.size_factor, shape (B,), got None."
        )
    return batch.size_factor
