"""Training and held-out cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

from probinterp.genomics.compat import obs_column


def split(
    adata: AnnData,
    heldout: float = 0.2,
    *,
    stratify: str | None = None,
    groups: str | None = None,
    seed: int = 0,
) -> tuple[AnnData, AnnData]:
    """Split cells at random into training and held-out cells.

    Split first and read both parts with :func:`from_anndata` afterwards, the held-out one with
    ``like=train``: then no size factor or choice of genes has seen held-out cells.

    Parameters
    ----------
    adata
        All cells.
    heldout
        Share of cells (of groups, with ``groups``) to hold out, in (0, 1).
    stratify
        Column of ``adata.obs`` whose levels are split in the same proportion.
    groups
        Column of ``adata.obs`` whose levels (donors, studies) are held out as a whole.
    seed
        Seed of the split.

    Returns
    -------
    train, heldout
        Copies, with the cells in their old order.

    Raises
    ------
    ValueError
        If the share is not in (0, 1), both ways of splitting are asked for, or a level is
        too small.
    """
    if not 0 < heldout < 1:
        raise ValueError(f"heldout must be a share of the cells in (0, 1), got {heldout}.")
    if stratify is not None and groups is not None:
        raise ValueError("stratify and groups exclude each other, got both.")
    train, test = _indices(adata, heldout, stratify, groups, seed)
    return adata[np.sort(train)].copy(), adata[np.sort(test)].copy()


def _indices(
    adata: AnnData, heldout: float, stratify: str | None, groups: str | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(adata.n_obs)
    options = {"n_splits": 1, "test_size": heldout, "random_state": seed}
    if groups is not None:
        labels = _labels(adata, groups)
        if labels.nunique() < 2:
            raise ValueError(f"adata.obs[{groups!r}] must have at least 2 groups, got 1.")
        return next(GroupShuffleSplit(**options).split(positions, groups=labels))
    if adata.n_obs < 2:
        raise ValueError(f"a split needs at least 2 cells, got {adata.n_obs}.")
    if stratify is None:
        return next(ShuffleSplit(**options).split(positions))
    labels = _labels(adata, stratify)
    smallest = labels.value_counts().loc[lambda sizes: sizes > 0].idxmin()
    if (labels == smallest).sum() < 2:
        raise ValueError(
            f"level {smallest!r} of adata.obs[{stratify!r}] has 1 cell; a stratified split "
            "needs at least 2 of each."
        )
    return next(StratifiedShuffleSplit(**options).split(positions, labels))


def _labels(adata: AnnData, key: str) -> pd.Series:
    labels = obs_column(adata, key)
    if labels.isna().any():
        cell = adata.obs_names[np.flatnonzero(labels.isna())[0]]
        raise ValueError(f"adata.obs[{key!r}] has no value in cell {cell!r}.")
    return labels.astype(str)
