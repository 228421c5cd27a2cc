"""Write factors into an AnnData, and read from them which genes they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from probinterp.genomics.annotation import check_anndata
from probinterp.genomics.expression import ExpressionData
from probinterp.genomics.validation import listing
from probinterp.inference.posterior import Factors


def factor_names(n_factors: int) -> list[str]:
    """Names of factors in tables and figures, counted from 1."""
    return [f"factor_{number}" for number in range(1, n_factors + 1)]


def write_factors(
    adata: AnnData,
    factors: Factors,
    *,
    key: str = "sparse_vae",
    data: ExpressionData | None = None,
    params: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    study_names: Sequence[str] | None = None,
) -> None:
    """Write factors into an AnnData in place.

    Parameters
    ----------
    adata
        Annotated data, not a view; its cells and genes are matched by name if ``data`` is given,
        otherwise by position.
    factors
        Scores and scales (N, K), effects (G, K), loadings and inclusion (G, K) or None.
    key
        Name of the model; see Notes.
    data
        The data that the factors were computed on. Needed when these are a part of the cells
        or genes of ``adata``; the others get NaN: they were not in the model.
    params
        Settings to keep: numbers, strings, Booleans and mappings of them; lists and None are
        written as JSON text.
    overwrite
        Whether results under the same key are replaced.
    study_names
        Names of the studies, for factors in blocks; default those of ``data``.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData, ``key`` or a setting cannot be written.
    KeyError
        If a cell or gene of ``data`` is not in ``adata``.
    ValueError
        If ``adata`` is a view, the key is taken, a shape does not match or a number is not finite.

    Notes
    -----
    Writes ``obsm["X_<key>"]`` (scores), ``obsm["<key>_scale"]`` (posterior standard deviations),
    ``varm["<key>_loadings"]``, ``varm["<key>_inclusion"]``, ``varm["<key>_effects"]`` and
    ``uns["<key>"]`` (factor names, columns in the model, sizes, settings). With blocks factors are
    called ``shared_1``, ``<study>_1`` and so on, ``uns["<key>"]["block"]`` says ``shared`` or the
    study of each, and ``uns["<key>"]["studies"]`` names the studies. Nothing is written unless all
    checks have passed.
    """
    check_anndata(adata)
    if adata.is_view:
        raise ValueError("adata is a view; write to adata.copy(), or to the AnnData it is from.")
    if not isinstance(key, str) or not key or "/" in key:
        raise TypeError(f"key must be a non-empty string without '/', got {key!r}.")
    obs_names = adata.obs_names if data is None else data.obs_names
    var_names = adata.var_names if data is None else data.var_names
    n_factors = _checked_shapes(factors, len(obs_names), len(var_names), data is not None)
    cells = _places(adata.obs_names, obs_names, "cells")
    genes = _places(adata.var_names, var_names, "genes")
    if study_names is None and data is not None:
        study_names = data.study_names
    summary = {
        "factor_names": np.array(factors.named(study_names), dtype=object),
        "columns": _array(factors.columns).astype(np.int64),
        "n_factors": n_factors,
        "n_obs": len(obs_names),
        "n_vars": len(var_names),
        "params": _storable(params or {}),
    } | _blocks(factors, study_names)
    tables: dict[str, dict[str, Tensor | None]] = {
        "obsm": {f"X_{key}": factors.scores, f"{key}_scale": factors.scales},
        "varm": {
            f"{key}_loadings": factors.loadings,
            f"{key}_inclusion": factors.inclusion,
            f"{key}_effects": factors.effects,
        },
    }
    _make_room(adata, key, tables, overwrite)
    for axis, places, n_rows in (("obsm", cells, adata.n_obs), ("varm", genes, adata.n_vars)):
        for name, value in tables[axis].items():
            if value is not None:
                getattr(adata, axis)[name] = _expanded(_array(value), places, n_rows)
    adata.uns[key] = summary


def top_genes(
    factors: Factors | AnnData,
    n: int = 10,
    *,
    key: str = "sparse_vae",
    var_names: Any = None,
    by_effect: bool = False,
    study_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """List the genes that each factor reaches most.

    Parameters
    ----------
    factors
        Factors, or an AnnData that :func:`write_factors` has filled.
    n
        Largest number of genes per factor. Genes with a value of exactly zero are never listed.
    key
        Name of the model in the AnnData.
    var_names
        Names of the G genes; needed for factors, refused for an AnnData.
    by_effect
        Whether genes are ordered by their decoded effect, which is on one scale for all genes, or
        by their loading, which a decoder with a network per gene may scale freely.
    study_names
        Names of the studies, for factors in blocks; an AnnData holds them already.

    Returns
    -------
    pandas.DataFrame
        Columns factor, rank (from 1), gene, loading and effect (with their signs), inclusion;
        NaN where the model has none. Ordered by factor, then by falling absolute value; ties
        keep the order of the genes.

    Raises
    ------
    KeyError
        If the AnnData holds no such result.
    ValueError
        If there are no loadings to order by, or names are missing or do not match.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if isinstance(factors, AnnData):
        if study_names is not None:
            raise ValueError("study_names are those written; give them for factors only.")
        found = _written(factors, key, var_names)
    else:
        found = _computed(factors, var_names, study_names)
    by = found.effects if by_effect else found.loadings
    if by is None:
        raise ValueError("these factors have no loadings; order by effects with by_effect=True.")
    size = np.nan_to_num(np.abs(by))  # genes outside the model hold NaN
    order = np.argsort(-size, axis=0, kind="stable")[:n]  # (n, K)
    factor, rank = np.nonzero(np.take_along_axis(size, order, axis=0).T)
    gene = order[rank, factor]
    values = {
        name: np.nan if table is None else table[gene, factor]
        for name, table in found._asdict().items()
        if name in ("loadings", "effects", "inclusion")
    }
    return pd.DataFrame(
        {
            "factor": found.names[factor],
            "rank": rank + 1,
            "gene": found.genes[gene],
            "loading": values["loadings"],
            "effect": values["effects"],
            "inclusion": values["inclusion"],
        }
    )


class _Found(NamedTuple):
    names: NDArray[Any]
    genes: NDArray[Any]
    loadings: NDArray[Any] | None
    effects: NDArray[Any]
    inclusion: NDArray[Any] | None


def _blocks(factors: Factors, study_names: Sequence[str] | None) -> dict[str, Any]:
    blocks = factors.block_names(study_names)
    if blocks is None or factors.block is None:
        return {}
    if study_names is None:
        n_studies = int(factors.block.max()) + 1 if len(blocks) else 0
        study_names = [f"study{m}" for m in range(n_studies)]
    return {
        "block": np.array(blocks, dtype=object),
        "studies": np.array(study_names, dtype=object),
    }


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _checked_shapes(factors: Factors, n_obs: int, n_vars: int, named: bool) -> int:
    n_factors = len(_array(factors.columns))
    expected = {
        "scores": (n_obs, n_factors),
        "scales": (n_obs, n_factors),
        "loadings": (n_vars, n_factors),
        "inclusion": (n_vars, n_factors),
        "effects": (n_vars, n_factors),
    }
    owner = "data" if named else "adata"
    advice = "" if named else "; give data=... if the model saw a part of the cells or genes"
    for name, shape in expected.items():
        value = getattr(factors, name)
        if value is None and name in ("loadings", "inclusion"):
            continue
        array = _array(value)
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} to match {owner}, got {array.shape}{advice}."
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} must be finite, got {(~np.isfinite(array)).sum()} that are not."
            )
    return n_factors


def _places(everyone: pd.Index, names: pd.Index, what: str) -> NDArray[np.int64]:
    places = everyone.get_indexer(names).astype(np.int64)
    if (places < 0).any():
        raise KeyError(
            f"{(places < 0).sum()} {what} of data are not in adata: {listing(names[places < 0])}."
        )
    return places


def _expanded(values: NDArray[Any], places: NDArray[np.int64], n_rows: int) -> NDArray[Any]:
    full = np.full((n_rows, values.shape[1]), np.nan, dtype=values.dtype)
    full[places] = values
    return full


def _make_room(
    adata: AnnData, key: str, tables: Mapping[str, Mapping[str, Any]], overwrite: bool
) -> None:
    taken = [
        f"{axis}[{name!r}]"
        for axis in tables
        for name in tables[axis]
        if name in getattr(adata, axis)
    ]
    taken += [f"uns[{key!r}]"] if key in adata.uns else []
    if taken and not overwrite:
        raise ValueError(f"adata holds {', '.join(taken)}; give overwrite=True or another key.")
    for axis, named in tables.items():
        for name in named:
            getattr(adata, axis).pop(name, None)
    adata.uns.pop(key, None)


def _storable(params: Mapping[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for name, value in params.items():
        if not isinstance(name, str) or "/" in name or not name:
            raise TypeError(f"names of settings must be strings without '/', got {name!r}.")
        if isinstance(value, Mapping):
            stored[name] = _storable(value)
        elif isinstance(value, bool | int | float | str):
            stored[name] = value
        elif value is None or isinstance(value, list | tuple):
            stored[name] = json.dumps(value)
        else:
            raise TypeError(
                f"setting {name!r} must be a number, string, list, mapping or None, "
                f"got {type(value).__name__}."
            )
    return stored


def _written(adata: AnnData, key: str, var_names: Any) -> _Found:
    if var_names is not None:
        raise ValueError("var_names are those of the AnnData; give them for factors only.")
    if f"{key}_effects" not in adata.varm or key not in adata.uns:
        raise KeyError(f"no adata.varm[{key + '_effects'!r}]; call write_factors first.")
    tables = {
        name: np.asarray(adata.varm[f"{key}_{name}"]) if f"{key}_{name}" in adata.varm else None
        for name in ("loadings", "inclusion")
    }
    return _Found(
        np.asarray(adata.uns[key]["factor_names"], dtype=object),
        np.asarray(adata.var_names, dtype=object),
        tables["loadings"],
        np.asarray(adata.varm[f"{key}_effects"]),
        tables["inclusion"],
    )


def _computed(factors: Factors, var_names: Any, study_names: Sequence[str] | None) -> _Found:
    effects = _array(factors.effects)
    if var_names is None or len(var_names) != len(effects):
        given = "none" if var_names is None else len(var_names)
        raise ValueError(f"expected var_names with {len(effects)} genes, got {given}.")
    return _Found(
        np.asarray(factors.named(study_names), dtype=object),
        np.asarray(var_names, dtype=object),
        None if factors.loadings is None else _array(factors.loadings),
        effects,
        None if factors.inclusion is None else _array(factors.inclusion),
    )
