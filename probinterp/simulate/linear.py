"""Data of linear factor analysis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FactorAnalysisTruth(NamedTuple):
    """Simulated linear factor data: observations, factors, loadings, noise scale."""

    x: Tensor
    z: Tensor
    loadings: Tensor
    noise_scale: Tensor


def factor_analysis(
    n: int, n_features: int, n_factors: int, *, noise: float = 0.5, seed: int
) -> FactorAnalysisTruth:
    r"""Linear factor analysis, :math:`x = W z + \epsilon`, with standard normal loadings."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(n_features, n_factors, generator=generator)
    z = torch.randn(n, n_factors, generator=generator)
    x = z @ loadings.mT + noise * torch.randn(n, n_features, generator=generator)
    return FactorAnalysisTruth(x, z, loadings, torch.full((n_features,), noise))
