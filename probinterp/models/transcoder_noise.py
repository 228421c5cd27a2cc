"""Noise of a layer's outputs given the codes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.configuration import Configured

INITIAL_LOG_SCALE = -0.5  # of outputs of norm sqrt(D); smaller, and the prior of the codes is idle
SMALLEST_SCALE = 1e-6  # of a perfect reconstruction, in the same units


class TokenNoise(Configured, nn.Module, ABC):
    r"""Distribution of the outputs of one token, (L, D), around their mean.

    Outputs are normalised: those of each layer have the norm :math:`\sqrt D` on average.
    """

    @abstractmethod
    def allocate(self, n_layers: int, width: int) -> None:
        """Make the parameters; called once, by the transcoder."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Squared scale of each channel, (L, D), or of each layer, (L, 1)."""

    @abstractmethod
    def log_density(self, quadratic: Tensor) -> Tensor:
        r"""Log density by token and layer, (B, L), of a standardised squared error.

        Parameters
        ----------
        quadratic
            :math:`E \sum_c r_c^2 / \sigma_c^2` with residuals r and ``variance``, (B, L). A
            density that is not Gaussian gives a lower bound where the codes are uncertain.
        """

    @abstractmethod
    def distribution(self, mean: Tensor, unit: Tensor) -> TorchDistribution:
        """Distribution of outputs, batch shape (B,), event shape (L, D).

        Parameters
        ----------
        mean
            Mean of the outputs in their own units, (B, L, D).
        unit
            Size of a normalised unit in the units of the outputs, (L, 1).
        """

    @abstractmethod
    def rescale(self, unit: Tensor) -> None:
        """Multiply the scales in place by ``unit``, (L, 1)."""

    @abstractmethod
    def fit_residuals(self, mean_square: Tensor) -> None:
        """Set the scales to those of residuals with a mean square by layer and channel, (L, D)."""


class LayerNoise(TokenNoise):
    r"""Normal noise with one scale a layer, :math:`y^l \sim N(\hat y^l, \sigma_l^2 I)`."""

    log_scale: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.width = 0

    def allocate(self, n_layers: int, width: int) -> None:
        """Make the scales, (L,)."""
        self.width = width
        self.log_scale = nn.Parameter(torch.full((n_layers,), INITIAL_LOG_SCALE))

    @property
    def variance(self) -> Tensor:
        """Squared scales, (L, 1)."""
        return (2 * self.log_scale).exp().unsqueeze(1)

    def log_density(self, quadratic: Tensor) -> Tensor:
        """Log density by token and layer, (B, L)."""
        return normal_log_density(quadratic, self.width) - self.width * self.log_scale

    def distribution(self, mean: Tensor, unit: Tensor) -> TorchDistribution:
        """Normal distribution, event shape (L, D)."""
        scale = self.log_scale.exp().unsqueeze(1) * unit
        return dist.Normal(mean, scale.expand_as(mean)).to_event(2)

    @torch.no_grad()
    def rescale(self, unit: Tensor) -> None:
        """Multiply the scales in place by ``unit``, (L, 1)."""
        self.log_scale.add_(unit.squeeze(1).log())

    @torch.no_grad()
    def fit_residuals(self, mean_square: Tensor) -> None:
        """Set the scales to the root mean square residual of each layer."""
        mean_square = mean_square.mean(1).clamp_min(SMALLEST_SCALE**2)
        self.log_scale.copy_(0.5 * mean_square.log())


class SquaredErrorNoise(TokenNoise):
    """Normal noise of variance one half: minus the log density is the squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 0
        self.halves: Tensor
        self.register_buffer("halves", torch.empty(0, 1), persistent=False)

    def allocate(self, n_layers: int, width: int) -> None:
        """Note the shape."""
        self.width = width
        self.register_buffer("halves", torch.full((n_layers, 1), 0.5), persistent=False)

    @property
    def variance(self) -> Tensor:
        """One half for every layer, (L, 1)."""
        return self.halves

    def log_density(self, quadratic: Tensor) -> Tensor:
        """Log density by token and layer, (B, L)."""
        return normal_log_density(quadratic, self.width) + 0.5 * self.width * math.log(2)

    def distribution(self, mean: Tensor, unit: Tensor) -> TorchDistribution:
        """Normal distribution, event shape (L, D)."""
        return dist.Normal(mean, (self.halves.sqrt() * unit).expand_as(mean)).to_event(2)

    def rescale(self, unit: Tensor) -> None:
        """Nothing: the scale is given."""

    def fit_residuals(self, mean_square: Tensor) -> None:
        """Nothing: the scale is given."""


def normal_log_density(quadratic: Tensor, width: int) -> Tensor:
    """Log density of a standard normal vector of ``width`` channels and squared norm."""
    return -0.5 * (quadratic + width * math.log(2 * math.pi))
