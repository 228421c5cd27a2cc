"""Distributions that sparse latent-variable models need and torch does not have."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.distributions.utils import broadcast_all

NO_SHAPE = torch.Size()


class SpikeSlabLasso(TorchDistribution):
    r"""Mixture of two Laplace densities, a narrow spike and a wide slab, at zero.

    .. math:: p(w) = \eta\,\tfrac{\lambda_1}{2} e^{-\lambda_1 |w|}
              + (1 - \eta)\,\tfrac{\lambda_0}{2} e^{-\lambda_0 |w|}

    Its gradient is that of the weighted penalty :math:`-\lambda^*|w|` of the EM algorithm, with
    :math:`\lambda^*` from :meth:`expected_rate`, so the density can stand in a Pyro model as it
    is and its value can be compared between iterations.

    Parameters
    ----------
    spike
        Rate of the spike, :math:`\lambda_0 > \lambda_1`.
    slab
        Rate of the slab, :math:`\lambda_1 > 0`.
    inclusion_rate
        Prior probability of the slab, :math:`\eta \in (0, 1)`.

    References
    ----------
    The Spike-and-Slab LASSO (Ročková and George, 2018), equations 2.1 and 2.5.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "spike": constraints.positive,
        "slab": constraints.positive,
        "inclusion_rate": constraints.unit_interval,
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        spike: Tensor | float,
        slab: Tensor | float,
        inclusion_rate: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.spike, self.slab, self.inclusion_rate = broadcast_all(spike, slab, inclusion_rate)
        super().__init__(self.spike.shape, validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> SpikeSlabLasso:
        """Distribution with the same parameters and a larger batch shape."""
        return SpikeSlabLasso(
            self.spike.expand(batch_shape),
            self.slab.expand(batch_shape),
            self.inclusion_rate.expand(batch_shape),
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with both normalising constants, of the shape of ``value``."""
        size = value.abs()
        # logaddexp: exp(-spike * |w|) underflows for |w| of one tenth already
        slab = self.inclusion_rate.log() + (self.slab / 2).log() - self.slab * size
        spike = torch.log1p(-self.inclusion_rate) + (self.spike / 2).log() - self.spike * size
        return torch.logaddexp(slab, spike)

    def inclusion_probability(self, value: Tensor) -> Tensor:
        r"""Probability that ``value`` came from the slab, :math:`p^*(w)`.

        .. math:: p^* = \mathrm{sigmoid}(\mathrm{logit}\,\eta + \log\tfrac{\lambda_1}{\lambda_0}
                  + (\lambda_0 - \lambda_1)|w|)
        """
        # log odds: the ratio of densities overflows float32 at (spike - slab) |w| = 88
        prior = torch.logit(self.inclusion_rate) + (self.slab / self.spike).log()
        return torch.sigmoid(prior + (self.spike - self.slab) * value.abs())

    def expected_rate(self, value: Tensor) -> Tensor:
        r"""Penalty :math:`\lambda^* = \lambda_1 p^* + \lambda_0 (1 - p^*)` at ``value``."""
        included = self.inclusion_probability(value)
        return self.slab * included + self.spike * (1 - included)

    def sample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw values by choosing the component first."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            included = torch.rand(shape, device=self.spike.device) < self.inclusion_rate
            rate = torch.where(included, self.slab, self.spike)
            sign = 2.0 * torch.randint(0, 2, shape, device=rate.device) - 1.0
            return sign * torch.empty(shape, device=rate.device).exponential_() / rate

    @property
    def mean(self) -> Tensor:
        """Zero: both components are symmetric."""
        return torch.zeros_like(self.spike)

    @property
    def variance(self) -> Tensor:
        r""":math:`2\eta/\lambda_1^2 + 2(1 - \eta)/\lambda_0^2`."""
        rate = self.inclusion_rate
        return 2 * rate / self.slab**2 + 2 * (1 - rate) / self.spike**2


def column_cost(n_active: int, n_features: int) -> float:
    r"""Negative log prior of one column's support, its inclusion rate integrated out.

    .. math:: -\log \frac{B(1 + s,\ 2G - s)}{B(1, G)}

    An empty column (``n_active = 0``) costs log 2, whatever G; the first feature of a column is
    the expensive one. That is the implicit penalty on the number of factors; a factor of M
    studies that is coded as M specific columns pays it M times.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 3.
    """
    if not 0 <= n_active <= n_features:
        raise ValueError(
            f"n_active must be between 0 and n_features = {n_features}, got {n_active}."
        )

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return log_beta(1, n_features) - log_beta(1 + n_active, 2 * n_features - n_active)


class GatedNormal(TorchDistribution):
    r"""Independent normals of which some coordinates do not exist: they are exactly zero.

    .. math:: z_k \sim N(\mu_k, s_k^2)\ \text{where}\ g_k = 1, \quad z_k = 0\ \text{elsewhere}

    Coordinates outside the gate enter neither the density nor a KL divergence, and no gradient
    passes through them.

    Parameters
    ----------
    loc, scale
        Means and standard deviations, (..., K).
    gate
        True where a coordinate exists, boolean, (..., K).

    References
    ----------
    Nonlinear multi-study factor analysis (Moran and Krishnan, 2026): zero-padded factors.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        gate: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(
            gate.shape, *(v.shape for v in (loc, scale) if torch.is_tensor(v))
        )
        self.gate = gate.expand(shape)
        self.normal = Normal(loc, scale, validate_args=False).expand(shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> GatedNormal:
        """Distribution with the same parameters and a larger batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        normal = self.normal.expand(shape)
        return GatedNormal(normal.loc, normal.scale, self.gate.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means, zero outside the gate."""
        return torch.where(self.gate, self.normal.loc, 0.0)

    @property
    def variance(self) -> Tensor:
        """Variances, zero outside the gate."""
        return torch.where(self.gate, self.normal.variance, 0.0)

    def rsample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw values; those outside the gate are zero."""
        return torch.where(self.gate, self.normal.rsample(sample_shape), 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the coordinates within the gate."""
        return torch.where(self.gate, self.normal.log_prob(value), 0.0).sum(-1)


@register_kl(GatedNormal, GatedNormal)
def _kl_gated_normal(p: GatedNormal, q: GatedNormal) -> Tensor:
    """KL divergence of the coordinates within the gate, which must be the same for both."""
    return torch.where(p.gate, kl_divergence(p.normal, q.normal), 0.0).sum(-1)


@register_kl(MultivariateNormal, Independent)
def _kl_full_to_independent_normal(p: MultivariateNormal, q: Independent) -> Tensor:
    """Closed form for a full covariance against independent normals, which torch lacks."""
    if not (isinstance(q.base_dist, Normal) and q.reinterpreted_batch_ndims == 1):
        raise NotImplementedError
    scale = q.base_dist.scale
    lower = p.scale_tril / scale.unsqueeze(-1)
    shift = (p.loc - q.base_dist.loc) / scale
    log_det = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    n_factors = p.event_shape[0]
    return 0.5 * (lower.square().sum((-2, -1)) + shift.square().sum(-1) - n_factors) - log_det
