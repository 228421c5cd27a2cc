"""Split cells into a training and a held-out part."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from probinterp.criticism import split_groups, split_rows
from probinterp.genomics.annotation import check_anndata, obs_column
from probinterp.genomics.expression import ExpressionData
from probinterp.genomics.validation import listing


class AnnDataSplit(NamedTuple):
    """Two AnnData without a common cell."""

    train: AnnData
    heldout: AnnData


class ExpressionSplit(NamedTuple):
    """Two ExpressionData without a common cell; size factors use the training median."""

    train: ExpressionData
    heldout: ExpressionData


def split(
    data: AnnData | ExpressionData,
    heldout: float = 0.2,
    *,
    stratify: str | ArrayLike | None = None,
    groups: str | ArrayLike | None = None,
    seed: int = 0,
) -> AnnDataSplit | ExpressionSplit:
    """Hold out a share of the cells; both parts keep the order of ``data``.

    Parameters
    ----------
    data
        Cells to split.
    heldout
        Share that is held out, in (0, 1): of the cells, or with ``groups`` of the groups.
    stratify
        Label of each cell, (N,), or a column of ``obs`` for an AnnData: every label has the same
        share in both parts, as nearly as whole cells allow.
    groups
        Label of each cell, such as the donor: cells with one label stay together. With
        ``stratify`` too, the held-out part is one fold of a ``StratifiedGroupKFold`` with
        ``round(1 / heldout)`` folds.
    seed
        Seed of the random choice.

    Returns
    -------
    AnnDataSplit or ExpressionSplit
        ``(train, heldout)``: copies for an AnnData; for an ExpressionData both parts have size
        factors relative to the median library size of the *training* cells.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If a part would be empty, a label is missing or has the wrong length, or a stratum has a
        single cell.

    Notes
    -----
    Genes without a count in the training part stay in it. To drop them, split the AnnData first
    and read ``from_anndata(train, drop_empty=True)``, then ``from_anndata(heldout, like=...)``.
    """
    if isinstance(data, AnnData):
        check_anndata(data)
        if data.isbacked:
            raise TypeError(
                "a split of backed data would read the whole file; split the ExpressionData "
                "instead: split(from_anndata(adata))."
            )
    elif not isinstance(data, ExpressionData):
        raise TypeError(f"expected an AnnData or ExpressionData, got {type(data).__name__}.")
    strata = None if stratify is None else _labels(data, stratify, "stratify")
    together = None if groups is None else _labels(data, groups, "groups")
    _check_share(heldout, data.n_obs, strata, together)
    first, second = _choose(data.n_obs, heldout, strata, together, seed)
    if isinstance(data, AnnData):
        return AnnDataSplit(data[first].copy(), data[second].copy())
    train, rest = data.subset(first), data.subset(second)
    if train.library_size is None:
        return ExpressionSplit(train, rest)
    median = float(np.median(train.library_size))
    return ExpressionSplit(
        train.with_median_library_size(median), rest.with_median_library_size(median)
    )


def _labels(data: AnnData | ExpressionData, labels: Any, name: str) -> NDArray[Any]:
    if isinstance(labels, str):
        if not isinstance(data, AnnData):
            raise TypeError(f"{name} must be one label per cell for an ExpressionData, got a name.")
        return obs_column(data, labels).to_numpy().astype(str)
    values = labels.numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (data.n_obs,):
        raise ValueError(
            f"{name} must have one label per cell, shape ({data.n_obs},), got {values.shape}."
        )
    if pd.isna(values).any():
        raise ValueError(f"{name} is missing (NaN) for {pd.isna(values).sum()} cells.")
    return values.astype(str)


def _check_share(
    heldout: float, n_obs: int, strata: NDArray[Any] | None, groups: NDArray[Any] | None
) -> None:
    if not 0 < heldout < 1:
        raise ValueError(f"heldout must lie in (0, 1), got {heldout}.")
    units = n_obs if groups is None else len(np.unique(groups))
    what = "cells" if groups is None else "groups"
    if units < 2:
        raise ValueError(f"a split needs at least 2 {what}, got {units}.")
    if strata is None:
        return
    if groups is not None:
        folds = round(1 / heldout)
        if not 2 <= folds <= units:
            raise ValueError(
                f"heldout={heldout} asks for {folds} folds of {units} groups; "
                f"expected heldout between {1 / units:.3g} and 0.5."
            )
        return
    names, sizes = np.unique(strata, return_counts=True)
    if (sizes < 2).any():
        raise ValueError(
            f"strata with a single cell cannot be in both parts: {listing(names[sizes < 2])}; "
            "merge or drop them."
        )


def _choose(
    n_obs: int,
    heldout: float,
    strata: NDArray[Any] | None,
    groups: NDArray[Any] | None,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if strata is not None and groups is not None:
        splitter = StratifiedGroupKFold(round(1 / heldout), shuffle=True, random_state=seed)
        train, rest = next(splitter.split(np.zeros(n_obs), strata, groups))
        return np.sort(train), np.sort(rest)
    try:
        if groups is not None:
            found = split_groups(groups, heldout, seed)
        else:
            found = split_rows(n_obs, heldout, seed, strata)
    except ValueError as error:
        raise ValueError(
            f"{n_obs} cells cannot be split with heldout={heldout}: {error}"
        ) from error
    return found.train.numpy(), found.heldout.numpy()
