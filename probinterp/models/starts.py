"""Data-driven starting values."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.models.blocks import SHARED

OVERSAMPLING, POWER_ITERATIONS, ROTATIONS = 10, 4, 50
SMALLEST_SPREAD = 0.3  # of a feature before it is standardised; rarer features would be noise
ACTIVE_SHARE = 0.5  # of the largest variance of a factor's scores within a study
SMALL_LOADING = 0.1
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


def components_by_block(x: Tensor, study: Tensor, block: Tensor) -> Tensor:
    r"""Rotated components of several studies, each in the block of the studies where it varies.

    Components are those of ``x`` centred within studies whose variance exceeds what pure noise
    would have, :math:`(1 + \sqrt{G / N})^2` for standardised features. One whose scores vary in
    all studies goes to a shared column; one that varies in some goes to their blocks. A block takes
    those that explain most; what finds no room in all of its blocks goes to a shared column.

    Parameters
    ----------
    x
        Observations, (N, G).
    study
        Study of each, (N,), from 0 to M - 1.
    block
        Block of each column, (K,): -1 for shared, m for study m.

    Returns
    -------
    Tensor
        Loadings, (G, K); columns without a component hold small random numbers.
    """
    n_studies = int(study.max()) + 1
    member = torch.nn.functional.one_hot(study, n_studies).to(x.dtype)  # (N, M)
    size = member.sum(0)
    centered = x - member @ ((member.mT @ x) / size.unsqueeze(1))
    scaled = centered / centered.std(0, correction=0).clamp_min(SMALLEST_SPREAD)
    edge = (1 + (x.shape[1] / len(x)) ** 0.5) ** 2
    singular = torch.linalg.svdvals(scaled)
    rank = int((singular.square() / len(x) > edge).sum().clamp(1, len(block)))
    found = rotated_components(scaled, rank)
    scores = torch.linalg.lstsq(found, scaled.mT).solution.mT  # (N, rank)
    spread = (member.mT @ scores.square()) / size.unsqueeze(1)  # (M, rank)
    active = spread > ACTIVE_SHARE * spread.amax(0)
    explained = spread.mean(0) * found.square().sum(0)
    loadings = SMALL_LOADING * torch.randn_like(x[0].unsqueeze(1).expand(-1, len(block)))
    free = {b: (block == b).nonzero().flatten().tolist() for b in block.unique().tolist()}
    for k in explained.argsort(descending=True).tolist():
        studies = active[:, k].nonzero().flatten().tolist()
        wanted = [SHARED] if len(studies) == n_studies else studies
        if not all(free.get(b) for b in wanted):
            wanted = [SHARED] if free.get(SHARED) else []
        for b in wanted:
            loadings[:, free[b].pop(0)] = found[:, k]
    return loadings


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
