"""Data-driven starting values."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING, POWER_ITERATIONS, ROTATIONS = 10, 4, 50
SMALLEST_SPREAD = 0.3  # of a feature before it is standardised; rarer features would be noise
LARGE_LOADING = 0.95  # quantile of the absolute loadings that is scaled to 1


def rotated_components(x: Tensor, n_components: int) -> Tensor:
    """Loadings of the leading principal components of ``x``, rotated towards sparsity.

    Parameters
    ----------
    x
        Observations, (N, G); centred and, where a feature varies enough, standardised here.
    n_components
        Number of columns K; columns beyond the rank of ``x`` are zero.

    Returns
    -------
    Tensor
        Loadings, (G, K), scaled so that the large ones have size 1.
    """
    spread, center = torch.std_mean(x, dim=0, correction=0)
    scaled = (x - center) / spread.clamp_min(SMALLEST_SPREAD)
    rank = min(n_components, *scaled.shape)
    width = min(rank + OVERSAMPLING, *scaled.shape)
    _, singular, right = torch.svd_lowrank(scaled, q=width, niter=POWER_ITERATIONS)
    loadings = x.new_zeros(x.shape[1], n_components)
    loadings[:, :rank] = varimax(right[:, :rank] * (singular[:rank] / len(x) ** 0.5))
    every = max(1, loadings.numel() // 10**6)  # torch.quantile refuses very long vectors
    large = torch.quantile(loadings.abs().flatten()[::every], LARGE_LOADING)
    return loadings / large.clamp_min(torch.finfo(x.dtype).eps)


def varimax(loadings: Tensor) -> Tensor:
    """Rotate loadings (G, K) so that the variance of their squares within columns is largest.

    References
    ----------
    The varimax criterion for analytic rotation in factor analysis (Kaiser, 1958).
    """
    rotation = torch.eye(loadings.shape[1], dtype=loadings.dtype, device=loadings.device)
    for _ in range(ROTATIONS):
        rotated = loadings @ rotation
        target = rotated.pow(3) - rotated * rotated.square().mean(0)
        left, _, right = torch.linalg.svd(loadings.mT @ target)
        rotation = left @ right
    return loadings @ rotation
