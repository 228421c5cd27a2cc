"""Scatter of several studies, and principal components that they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.likelihoods import ObservedBatch
from probinterp.masks import std_mean
from probinterp.models.base import Batch
from probinterp.models.blocks import SHARED, gates

SMALLEST_SHARE = 0.005  # of a feature's variance that is noise; below, the likelihood may diverge


class MultiStudyScatter(NamedTuple):
    r"""All that a Gaussian likelihood needs of studies, in double precision.

    Attributes
    ----------
    size
        Number of observations of each study, (M,).
    mean
        Their means, (M, G).
    root
        Matrices :math:`R_m` with :math:`R_m^\top R_m = S_m`, the sample covariance with divisor
        :math:`n_m`; (M, R, G) with R the larger of the numbers min(n_m, G), padded with zeros.
    variance
        Diagonals of :math:`S_m`, (M, G).
    floor
        Smallest noise variance of each feature, (M, G).
    """

    size: Tensor
    mean: Tensor
    root: Tensor
    variance: Tensor
    floor: Tensor

    @classmethod
    def of(cls, studies: Sequence[ObservedBatch]) -> MultiStudyScatter:
        """Scatter of the rows of each study.

        Raises
        ------
        ValueError
            If entries are masked.
        """
        if any(rows.mask is not None for rows in studies):
            raise ValueError("masked entries are not supported: expected batch.mask to be None.")
        x = [rows.x.double() for rows in studies]
        means = [rows.mean(0) for rows in x]
        roots = [_root((a - b) / len(a) ** 0.5) for a, b in zip(x, means, strict=True)]
        root = torch.nn.utils.rnn.pad_sequence(roots, batch_first=True)
        size = torch.tensor([float(len(rows)) for rows in x], dtype=root.dtype, device=root.device)
        variance = root.square().sum(1)
        pooled = size @ variance / size.sum()
        usual = torch.where(pooled > 0, pooled, 1.0)  # a feature that is constant everywhere
        floor = SMALLEST_SHARE * torch.maximum(variance, SMALLEST_SHARE * usual)
        return cls(size, torch.stack(means), root, variance, floor)


def completed(batch: Batch) -> Batch:
    """Batch with the mean of its feature where an entry is not observed: for starting values."""
    if batch.mask is None:
        return batch
    _, center = std_mean(batch.x, batch.mask)
    return batch._replace(x=torch.where(batch.mask, batch.x, center), mask=None)


def joint_components(scatter: MultiStudyScatter, block: Tensor) -> tuple[Tensor, Tensor]:
    r"""Loadings and noise variances to start multi-study factor analysis from.

    Features are standardised within studies on average. With :math:`V_m` the leading
    :math:`K_S + K_m` principal directions of study m, the leading eigenvectors of
    :math:`\sum_m V_m V_m^\top` are the directions that the studies have in common; those of a
    study alone are its leading ones among the rest.

    Parameters
    ----------
    scatter
        The studies.
    block
        Block of each column, (K,): -1 for shared, m for study m.

    Returns
    -------
    tuple
        Loadings (G, K) and noise variances (M, G), in double precision. Columns beyond the rank of
        the data are zero.

    References
    ----------
    Angle-based joint and individual variation explained (Feng, Jiang, Hannig and Marron, 2018).
    """
    pooled = scatter.size @ scatter.variance / scatter.size.sum()
    spread = torch.where(pooled > 0, pooled, 1.0).sqrt()
    scaled = scatter.root / spread
    n_shared = int((block == SHARED).sum())
    sizes = [int((block == m).sum()) for m in range(len(scaled))]
    common = _common_directions(scaled, n_shared, sizes)
    loadings = scaled.new_zeros(scaled.shape[-1], len(block))
    weight = (scatter.size / scatter.size.sum()).sqrt().reshape(-1, 1, 1)
    shared = _along(common, (weight * scaled).flatten(0, 1))
    loadings[:, block == SHARED] = _filled(shared, n_shared)
    for m, n_specific in enumerate(sizes):
        rest = scaled[m] - scaled[m] @ common @ common.mT
        own = _along(_directions(rest, n_specific), rest)
        loadings[:, block == m] = _filled(own, n_specific)
    loadings = loadings * spread.unsqueeze(1)
    explained = gates(block, len(scaled))[:-1].to(loadings.dtype) @ loadings.square().mT  # (M, G)
    noise = torch.maximum(scatter.variance - explained, 0.1 * scatter.variance)
    return loadings, torch.maximum(noise, scatter.floor)


def _root(scaled: Tensor) -> Tensor:
    """Matrix of at most G rows with the same R^T R."""
    return torch.linalg.qr(scaled, mode="r").R if len(scaled) > scaled.shape[1] else scaled


def _common_directions(scaled: Tensor, n_shared: int, sizes: Sequence[int]) -> Tensor:
    """Orthonormal directions that the studies share, (G, at most n_shared)."""
    own = [_directions(rows, n_shared + n) for rows, n in zip(scaled, sizes, strict=True)]
    return _directions(torch.cat(own, dim=1).mT, n_shared)


def _directions(rows: Tensor, n: int) -> Tensor:
    """Leading right singular vectors, (G, at most n); none of vanishing singular values."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((singular > 1e-10 * singular.amax()).sum()) if len(singular) else 0
    return right[: min(n, rank)].mT


def _along(directions: Tensor, rows: Tensor) -> Tensor:
    """Loadings that have the covariance of the data within orthonormal directions."""
    _, singular, right = torch.linalg.svd(rows @ directions, full_matrices=False)
    return directions @ right.mT * singular


def _filled(columns: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(columns, (0, n - columns.shape[1]))
