"""Multivariate t distributions, one sphere of channels beside the other."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, constraints

NO_SHAPE = torch.Size()


class SphericalStudentT(TorchDistribution):
    r"""Independent vectors y of D channels, each with a t distribution around its mean.

    .. math:: y \mid u \sim N(\mu, \sigma^2 I / u), \quad
        u \sim \mathrm{Gamma}(\nu / 2, \nu / 2)

    Parameters
    ----------
    df
        Degrees of freedom :math:`\nu > 0`.
    loc
        Means, (..., L, D).
    scale
        Scales :math:`\sigma` of the L vectors, (..., L, 1).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, df: float, loc: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.df, self.loc = df, loc
        self.scale = scale.expand(*loc.shape[:-1], 1)
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> SphericalStudentT:
        """Distribution with the same parameters and a larger batch shape."""
        n_layers, width = self.event_shape
        loc = self.loc.expand(*batch_shape, n_layers, width)
        scale = self.scale.expand(*batch_shape, n_layers, 1)
        return SphericalStudentT(self.df, loc, scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means, (..., L, D); they exist for more than one degree of freedom."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r""":math:`\sigma^2 \nu / (\nu - 2)`, infinite for two degrees of freedom or less."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return (factor * self.scale.square()).expand_as(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, (...)."""
        quadratic = ((value - self.loc) / self.scale).square().sum(-1)
        width = self.event_shape[1]
        density = student_t_log_density(quadratic, self.df, width)
        return (density - width * self.scale.squeeze(-1).log()).sum(-1)

    def rsample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw the scale of each vector, then its channels."""
        shape = self._extended_shape(sample_shape)
        half = self.loc.new_full((*shape[:-1], 1), self.df / 2)
        u = Gamma(half, half, validate_args=False).sample()
        return self.loc + self.scale * torch.randn_like(self.loc.expand(shape)) / u.sqrt()


def student_t_log_density(quadratic: Tensor, df: float, width: int) -> Tensor:
    r"""Log density of a vector of D channels with squared norm Q and scale one.

    .. math:: \log \Gamma\big(\tfrac{\nu + D}2\big) - \log \Gamma\big(\tfrac\nu2\big)
        - \tfrac D2 \log \nu\pi - \tfrac{\nu + D}2 \log(1 + Q / \nu)
    """
    constant = math.lgamma((df + width) / 2) - math.lgamma(df / 2)
    constant -= 0.5 * width * math.log(df * math.pi)
    return constant - 0.5 * (df + width) * torch.log1p(quadratic / df)
