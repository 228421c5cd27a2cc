"""Dependent normal factors of which some do not exist."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence, register_kl

NO_SHAPE = torch.Size()


class GatedMultivariateNormal(TorchDistribution):
    r"""Multivariate normal of which some coordinates do not exist: they are exactly zero.

    .. math:: z_g \sim N(\mu_g, L_g L_g^\top), \quad z_k = 0\ \text{where}\ g_k = 0

    Coordinates outside the gate enter neither the density nor a KL divergence.

    Parameters
    ----------
    loc
        Means, (..., K); zero outside the gate.
    scale_tril
        Lower triangle L, (..., K, K); rows and columns outside the gate are those of the identity.
    gate
        True where a coordinate exists, boolean, (..., K).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale_tril: Tensor, gate: Tensor, validate_args: bool | None = None
    ) -> None:
        self.normal = MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)
        self.gate = gate.expand(self.normal.loc.shape)
        shape = self.normal.batch_shape, self.normal.event_shape
        super().__init__(*shape, validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> GatedMultivariateNormal:
        """Distribution with the same parameters and a larger batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        loc, gate = self.normal.loc.expand(shape), self.gate.expand(shape)
        lower = self.scale_tril.expand(shape + self.event_shape)
        return GatedMultivariateNormal(loc, lower, gate, validate_args=False)

    @property
    def scale_tril(self) -> Tensor:
        """Lower triangle L, the identity outside the gate, (..., K, K)."""
        return self.normal.scale_tril

    @property
    def mean(self) -> Tensor:
        """Means, zero outside the gate."""
        return self.normal.loc

    @property
    def variance(self) -> Tensor:
        """Variances, zero outside the gate."""
        return torch.where(self.gate, self.normal.variance, 0.0)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariances, zero outside the gate, (..., K, K)."""
        both = self.gate.unsqueeze(-1) & self.gate.unsqueeze(-2)
        return torch.where(both, self.normal.covariance_matrix, 0.0)

    def rsample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw values; those outside the gate are zero."""
        return torch.where(self.gate, self.normal.rsample(sample_shape), 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the coordinates within the gate."""
        absent = (~self.gate).sum(-1)  # each has the density of a standard normal at 0
        return self.normal.log_prob(value) + 0.5 * math.log(2 * math.pi) * absent


@register_kl(GatedMultivariateNormal, GatedMultivariateNormal)
def _kl_gated(p: GatedMultivariateNormal, q: GatedMultivariateNormal) -> Tensor:
    """KL divergence of the coordinates within the gate, which must be the same for both."""
    return kl_divergence(p.normal, q.normal)
