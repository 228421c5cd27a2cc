"""Mixture of Gaussians with diagonal covariances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Gamma, Independent, Normal

from probinterp.models.mixtures.mixture import Mixture, require_matrix


@dataclass(frozen=True, eq=False)
class GaussianMixtureParameters:
    """One value of the unknowns of a Gaussian mixture.

    Parameters
    ----------
    weights
        Probabilities of the components, shape (..., K).
    means, variances
        Of each feature in each component, shape (..., K, G).
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    @property
    def components(self) -> Independent:
        """The components, batch shape (..., K) and event shape (G,)."""
        normal = Normal(self.means, self.variances.sqrt(), validate_args=False)
        return Independent(normal, 1, validate_args=False)


class GaussianMixture(Mixture[GaussianMixtureParameters]):
    r"""Gaussian mixture with diagonal covariances and semi-conjugate priors.

    .. math:: \pi \sim \mathrm{Dirichlet}(a, \dots, a), \quad \mu_{kj} \sim N(0, s^2), \quad
        \sigma^2_{kj} \sim \mathrm{InvGamma}(\alpha, \beta), \quad
        x_{ij} \mid c_i = k \sim N(\mu_{kj}, \sigma^2_{kj})

    Parameters
    ----------
    n_components
        Number of components, K.
    concentration
        Parameter a > 0 of the Dirichlet prior of the weights.
    mean_scale
        Prior standard deviation s > 0 of the means, in the units of the data; may be infinite.
    shape, rate
        Parameters of the inverse gamma prior of the variances, alpha >= -1 and beta >= 0.

    Raises
    ------
    ValueError
        If a prior parameter is out of range.

    Notes
    -----
    The prior of the means is centred at 0, so centre data that lie far from it.
    ``mean_scale=math.inf, shape=-1, rate=0`` makes the priors flat and EM a search for the
    maximum likelihood; Gibbs sampling needs proper priors.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022), the Gaussian mixture;
    Pattern Recognition and Machine Learning (Bishop, 2006), section 9.2.

    Examples
    --------
    >>> import torch
    >>> x = torch.cat([torch.randn(50, 2) - 4, torch.randn(50, 2) + 4])
    >>> GaussianMixture(2).em(x).means.shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        n_components: int,
        *,
        concentration: float = 1.0,
        mean_scale: float = 10.0,
        shape: float = 1.0,
        rate: float = 1.0,
    ) -> None:
        super().__init__(n_components, concentration)
        if not (mean_scale > 0 and -1 <= shape < math.inf and 0 <= rate < math.inf):
            raise ValueError(
                "mean_scale must be positive, shape at least -1 and rate at least 0, "
                f"got {mean_scale}, {shape} and {rate}."
            )
        self.shape, self.rate = shape, rate
        self.mean_precision = mean_scale**-2

    def _require_data(self, x: Tensor) -> None:
        require_matrix(x)

    def _require_proper_prior(self) -> None:
        if self.mean_precision == 0 or self.shape <= 0 or self.rate == 0:
            raise ValueError(
                "gibbs needs proper priors (finite mean_scale, shape > 0, rate > 0): "
                "a component without data would have no distribution."
            )

    def _points(self, x: Tensor) -> Tensor:
        spread = x.std(0, correction=0)
        return x / torch.where(spread > 0, spread, 1.0)

    def _maximise(
        self, x: Tensor, responsibilities: Tensor, previous: GaussianMixtureParameters | None
    ) -> GaussianMixtureParameters:
        counts = responsibilities.sum(0).unsqueeze(1)
        shrinkage = self._variances(x, previous) * self.mean_precision
        means = responsibilities.mT @ x / (counts + shrinkage)
        squares = self._squares(x, responsibilities, means)
        variances = (squares / 2 + self.rate) / (counts / 2 + self.shape + 1)
        if not (variances > 0).all() or not means.isfinite().all():
            raise ValueError(
                "a component collapsed onto equal values or lost all its data, where the density "
                "is unbounded; give proper priors (rate > 0) or fewer components."
            )
        return GaussianMixtureParameters(self._modal_weights(responsibilities), means, variances)

    def _sample(
        self, x: Tensor, labels: Tensor, previous: GaussianMixtureParameters | None
    ) -> GaussianMixtureParameters:
        counts = labels.sum(0).unsqueeze(-1)
        before = self._variances(x, previous)
        precision = counts / before + self.mean_precision
        noise = torch.randn_like(precision) / precision.sqrt()
        sums = torch.einsum("n...k,n...g->...kg", labels, x)
        means = sums / before / precision + noise
        squares = self._squares(x, labels, means)
        inverse = Gamma(self.shape + counts / 2, self.rate + squares / 2, validate_args=False)
        return GaussianMixtureParameters(
            self._sampled_weights(labels), means, inverse.sample().reciprocal()
        )

    def _variances(self, x: Tensor, previous: GaussianMixtureParameters | None) -> Tensor:
        """Variances that the means are given: those of the whole data at the start."""
        if previous is not None:
            return previous.variances
        return (x.var(0, correction=0) + self.rate).unsqueeze(-2)  # a constant has variance 0

    @staticmethod
    def _squares(x: Tensor, responsibilities: Tensor, means: Tensor) -> Tensor:
        # deviations, not moments: the difference of large squares would cancel
        deviations = x.unsqueeze(-2) - means
        return torch.einsum("n...k,n...kg->...kg", responsibilities, deviations.square())

    def _log_prior(self, parameters: GaussianMixtureParameters) -> Tensor:
        variances = parameters.variances
        of_means = -self.mean_precision / 2 * parameters.means.square()
        of_variances = -(self.shape + 1) * variances.log() - self.rate / variances
        return (of_means + of_variances).sum()

    def _select(
        self, parameters: GaussianMixtureParameters, order: Tensor
    ) -> GaussianMixtureParameters:
        return GaussianMixtureParameters(
            parameters.weights[order], parameters.means[order], parameters.variances[order]
        )
