"""Noise of a layer's outputs that is not the same in all directions, or has heavy tails."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.models.transcoder_noise import (
    INITIAL_LOG_SCALE,
    SMALLEST_SCALE,
    LayerNoise,
    TokenNoise,
    normal_log_density,
)
from probinterp.spherical_student_t import SphericalStudentT, student_t_log_density


class DiagonalNoise(TokenNoise):
    r"""Normal noise with one scale a layer and channel.

    .. math:: y_c^l \sim N(\hat y_c^l, \sigma_{lc}^2)
    """

    log_scale: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.width = 0

    def allocate(self, n_layers: int, width: int) -> None:
        """Make the scales, (L, D)."""
        self.width = width
        self.log_scale = nn.Parameter(torch.full((n_layers, width), INITIAL_LOG_SCALE))

    @property
    def variance(self) -> Tensor:
        """Squared scales, (L, D)."""
        return (2 * self.log_scale).exp()

    def log_density(self, quadratic: Tensor) -> Tensor:
        """Log density by token and layer, (B, L)."""
        return normal_log_density(quadratic, self.width) - self.log_scale.sum(1)

    def distribution(self, mean: Tensor, unit: Tensor) -> TorchDistribution:
        """Normal distribution, event shape (L, D)."""
        scale = self.log_scale.exp() * unit
        return dist.Normal(mean, scale.expand_as(mean)).to_event(2)

    @torch.no_grad()
    def rescale(self, unit: Tensor) -> None:
        """Multiply the scales in place by ``unit``, (L, 1)."""
        self.log_scale.add_(unit.log())

    @torch.no_grad()
    def fit_residuals(self, mean_square: Tensor) -> None:
        """Set the scales to the root mean square residual of each channel."""
        self.log_scale.copy_(0.5 * mean_square.clamp_min(SMALLEST_SCALE**2).log())


class StudentTNoise(LayerNoise):
    r"""Heavy-tailed noise: a token may be far off in one layer without drawing the fit to it.

    .. math:: y^l \mid u \sim N(\hat y^l, \sigma_l^2 I / u), \quad
        u \sim \mathrm{Gamma}(\nu / 2, \nu / 2)

    With uncertain codes and :math:`R` the expected squared error, the best posterior of u is
    :math:`\mathrm{Gamma}((\nu + D) / 2, (\nu + R / \sigma^2) / 2)`; with it the bound is the
    multivariate t density at R.

    Parameters
    ----------
    df
        Degrees of freedom :math:`\nu > 2`.

    References
    ----------
    Robust Mixture Modelling Using the t Distribution (Peel and McLachlan, 2000).
    """

    def __init__(self, df: float = 5.0) -> None:
        super().__init__()
        if not df > 2:
            raise ValueError(f"df must be more than 2 for a finite variance, got {df}.")
        self.df = df

    def log_density(self, quadratic: Tensor) -> Tensor:
        """Log density by token and layer, (B, L)."""
        density = student_t_log_density(quadratic, self.df, self.width)
        return density - self.width * self.log_scale

    def weight(self, quadratic: Tensor) -> Tensor:
        r"""Weight of a token in a layer, :math:`E u = (\nu + D) / (\nu + R / \sigma^2)`."""
        return (self.df + self.width) / (self.df + quadratic)

    def distribution(self, mean: Tensor, unit: Tensor) -> TorchDistribution:
        """Multivariate t distributions, event shape (L, D)."""
        scale = self.log_scale.exp().unsqueeze(1) * unit
        return SphericalStudentT(self.df, mean, scale)

    @torch.no_grad()
    def fit_residuals(self, mean_square: Tensor) -> None:
        """Set the scales so that the variance is the mean square residual of each layer."""
        super().fit_residuals(mean_square * (self.df - 2) / self.df)
