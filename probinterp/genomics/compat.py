"""The few places where AnnData versions differ."""

from __future__ import annotations

from typing import Any

import pandas as pd
from anndata import AnnData


def matrix_of(adata: AnnData, layer: str | None) -> Any:
    """The matrix ``X`` or a layer; a backed one is opened once and not copied."""
    if layer is None:
        if adata.X is None:
            raise ValueError("adata.X is None; name a layer with layer=.")
        return adata.X
    available = layer_names(adata)
    if layer not in available:
        raise KeyError(f"layer {layer!r} not in adata.layers; available: {available}.")
    return adata.layers[layer]


def layer_names(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 lists ``X`` among them as None."""
    return sorted(name for name in adata.layers if name is not None)


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """One column of ``adata.obs``, or a ``KeyError`` that lists what there is."""
    if key not in adata.obs.columns:
        raise KeyError(f"{key!r} not in adata.obs; available: {sorted(map(str, adata.obs))}.")
    return adata.obs[key]


def as_strings(labels: pd.Series) -> list[str]:
    """Labels as Python strings, whatever the string type of pandas."""
    return [str(label) for label in labels]
