"""Functions of one factor that make up simulated features, and their covariances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FREQUENCY, SLOPE = 1.5, 1.5
IDENTITY, SINE, RECTIFIED = range(3)
N_LINKS = 3


def linked(z: Tensor) -> Tensor:
    r"""Links :math:`z`, :math:`\sin 1.5 z` and :math:`1.5 \max(z, 0)` of the codes, (3, ...)."""
    return torch.stack([z, (FREQUENCY * z).sin(), SLOPE * z.relu()])


def link_covariance() -> Tensor:
    r"""Covariance of the three links of one standard normal code, (3, 3), double precision.

    .. math:: E[z \sin az] = a e^{-a^2/2}, \quad \mathrm{Var}(\sin az) = (1 - e^{-2a^2}) / 2, \quad
        \mathrm{Var}(\max(z, 0)) = 1/2 - 1/(2\pi)

    and half of the covariance with z for those with max(z, 0), because the other link is odd.
    """
    with_sine = FREQUENCY * math.exp(-(FREQUENCY**2) / 2)
    sine = (1 - math.exp(-2 * FREQUENCY**2)) / 2
    rectified = SLOPE**2 * (0.5 - 0.5 / math.pi)
    half = SLOPE / 2
    return torch.tensor(
        [
            [1.0, with_sine, half],
            [with_sine, sine, half * with_sine],
            [half, half * with_sine, rectified],
        ],
        dtype=torch.float64,
    )
