"""Counts whose log means are sparse in the factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.simulate.sparse import sparse_decoder


class CountTruth(NamedTuple):
    """Simulated counts: observations, factors, support, size factors, mean profile."""

    x: Tensor
    z: Tensor
    support: Tensor
    size_factor: Tensor
    log_mean: Tensor


def sparse_counts(
    n: int,
    n_features: int,
    n_factors: int,
    *,
    inverse_dispersion: float = 5.0,
    anchors: int = 4,
    share: float = 0.1,
    seed: int,
) -> CountTruth:
    r"""Negative binomial counts whose log means are sparse in the factors.

    .. math:: x_{ij} \sim \mathrm{NB}(s_i \exp(\ell_j + w_j^\top z_i),\ r)

    Library sizes are log-normal with a log standard deviation of 0.3 and median 1.
    """
    shape = sparse_decoder(2, n_features, n_factors, anchors=anchors, share=share, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    z = torch.randn(n, n_factors, generator=generator)
    size_factor = (0.3 * torch.randn(n, generator=generator)).exp()
    level = 0.5 + torch.randn(n_features, generator=generator)
    log_mean = level + 0.4 * z @ shape.loadings.mT
    mean = size_factor.unsqueeze(1) * log_mean.clamp(max=6).exp()
    x = negative_binomial(mean, torch.tensor(inverse_dispersion), generator)
    return CountTruth(x, z, shape.support, size_factor, log_mean)


def negative_binomial(
    mean: Tensor, inverse_dispersion: Tensor, generator: torch.Generator
) -> Tensor:
    """Negative binomial counts as gamma mixtures of Poisson ones, the shape of ``mean``."""
    concentration = inverse_dispersion.to(mean.dtype).expand_as(mean).contiguous()
    gamma = torch._standard_gamma(concentration, generator=generator)
    return torch.poisson(gamma * mean / concentration, generator=generator)
