"""Checks of what surrounds the matrix of an AnnData: names, layers and columns of ``obs``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from probinterp.genomics.validation import listing


class GeneOrder(NamedTuple):
    """Which genes of the file are read, in which order.

    Parameters
    ----------
    take
        Columns to read, an index array or ``slice(None)``.
    columns
        The same as an index array (G,), or None for all in file order.
    ignored
        Genes of the file that are not read.
    reordered
        Whether the genes that are read stand in another order in the file.
    """

    take: NDArray[np.int64] | slice
    columns: NDArray[np.int64] | None
    ignored: tuple[str, ...]
    reordered: bool


def check_anndata(adata: Any) -> None:
    """Refuse anything but an AnnData with cells, genes and unique names."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"expected an AnnData, got {type(adata).__name__}; read files with anndata.read_h5ad."
        )
    if 0 in adata.shape:
        raise ValueError(f"expected cells and genes, got an AnnData of shape {adata.shape}.")
    for table, names in {"obs": adata.obs_names, "var": adata.var_names}.items():
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            raise ValueError(
                f"{table}_names are not unique: {listing(twice)} occur more than once; "
                f"call adata.{table}_names_make_unique() or drop the copies."
            )


def check_layout(adata: Any, layer: Any) -> None:
    """Refuse an AnnData without the matrix that is asked for."""
    check_anndata(adata)
    layers = sorted(str(name) for name in adata.layers if name is not None)
    if layer is None and adata.X is None:
        raise ValueError(f"adata.X is None; give layer=..., available: {layers}.")
    if layer is None:
        return
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a string or None, got {type(layer).__name__}.")
    if layer not in layers:
        raise KeyError(f"layer {layer!r} not in adata.layers; available: {layers}.")


def obs_column(adata: AnnData, key: Any) -> pd.Series:
    """Column ``key`` of ``obs``, complete."""
    if not isinstance(key, str):
        raise TypeError(f"the name of an obs column must be a string, got {type(key).__name__}.")
    if key not in adata.obs:
        raise KeyError(f"{key!r} not in adata.obs; available: {sorted(map(str, adata.obs))}.")
    column = adata.obs[key]
    if not isinstance(column, pd.Series):
        raise ValueError(f"obs has {column.shape[1]} columns named {key!r}; expected one.")
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"obs[{key!r}] is missing (NaN) for {missing.sum()} of {len(column)} cells: "
            f"{listing(adata.obs_names[missing])}."
        )
    return column


def numeric_column(adata: AnnData, key: str) -> NDArray[np.float64]:
    """Column of positive finite numbers (N,), such as library sizes."""
    column = obs_column(adata, key)
    if column.dtype.kind not in "iuf":
        raise TypeError(f"obs[{key!r}] must be numeric, got dtype {column.dtype}.")
    values = column.to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise ValueError(
            f"obs[{key!r}] must be positive and finite, got {values[bad][0]} for cell "
            f"{listing(adata.obs_names[bad])}."
        )
    return values


def gene_order(names: pd.Index, reference: pd.Index | None) -> GeneOrder:
    """Where the genes of ``reference`` stand in ``names``."""
    if reference is None:
        return GeneOrder(slice(None), None, (), False)
    columns = names.get_indexer(reference).astype(np.int64)
    missing = reference[columns < 0]
    if len(missing):
        raise KeyError(
            f"{len(missing)} of the {len(reference)} genes of the reference data are missing: "
            f"{listing(missing)}."
        )
    ignored = tuple(names[~names.isin(reference)])
    reordered = bool((np.diff(columns) < 0).any())
    everything = not ignored and not reordered
    return GeneOrder(columns, None if everything else columns, ignored, reordered)
