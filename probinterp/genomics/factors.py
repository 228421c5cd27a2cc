"""Factors written back to AnnData, and tables that a biologist can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from probinterp.inference.posterior import Factors


def write_factors(
    adata: AnnData,
    factors: Factors,
    *,
    var_names: Sequence[str] | None = None,
    obs_names: Sequence[str] | None = None,
    key: str = "sparse_vae",
    overwrite: bool = False,
    **settings: str | float,
) -> None:
    """Write scores, loadings and inclusion probabilities into an AnnData object.

    Parameters
    ----------
    adata
        Cells and genes that were fitted, or more of either.
    factors
        What :func:`probinterp.factors` returned.
    var_names, obs_names
        Names of the genes and cells of ``factors``, in order; default those of ``adata``.
        Cells and genes of ``adata`` that are not among them get NaN.
    key
        Written are ``obsm["X_<key>"]`` (N, K), ``varm["<key>_loadings"]`` and
        ``varm["<key>_inclusion"]`` (G, K), and ``uns["<key>"]``.
    overwrite
        Replace what an earlier call wrote.
    **settings
        Plain values to keep in ``uns["<key>"]["settings"]``.

    Raises
    ------
    KeyError
        If the key is taken, or a name is not in ``adata``.
    ValueError
        If ``adata`` is a view, or shapes do not fit.
    """
    if adata.is_view:
        raise ValueError("adata is a view; write to adata.copy(), which owns its arrays.")
    if key in adata.uns and not overwrite:
        raise KeyError(f"adata.uns[{key!r}] exists; pass overwrite=True or another key.")
    cells = _positions(adata.obs_names, obs_names, len(factors.scores), "scores", "obs_names")
    adata.obsm[f"X_{key}"] = _spread(factors.scores.numpy(), cells, adata.n_obs)
    for name, values in {"loadings": factors.loadings, "inclusion": factors.inclusion}.items():
        if values is None:
            continue
        genes = _positions(adata.var_names, var_names, len(values), name, "var_names")
        adata.varm[f"{key}_{name}"] = _spread(values.numpy(), genes, adata.n_vars)
    adata.uns[key] = {
        "factor_names": np.array(factors.names, dtype=object).astype(str),
        "columns": factors.columns.numpy(),
        "n_factors": len(factors.columns),
        "settings": settings,
    }


def top_genes(factors: Factors, var_names: Sequence[str], n: int = 10) -> pd.DataFrame:
    """The genes with the largest loadings of each factor.

    Parameters
    ----------
    factors
        What :func:`probinterp.factors` returned; only genes in the support are listed.
    var_names
        Names of the genes, (G,).
    n
        Genes a factor at most.

    Returns
    -------
    DataFrame
        Columns ``factor``, ``rank``, ``gene``, ``loading`` and, where known, ``inclusion``;
        factors in order, genes by falling absolute loading.
    """
    loadings, support = factors.loadings, factors.support
    if loadings is None or support is None:
        raise ValueError("these factors have no loadings: the model's decoder is not sparse.")
    if len(var_names) != len(loadings):
        raise ValueError(f"var_names must name {len(loadings)} genes, got {len(var_names)}.")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    rows = []
    for column, name in enumerate(factors.names):
        size = (loadings[:, column].abs() * support[:, column]).numpy()
        chosen = np.argsort(-size, kind="stable")[: min(n, int(support[:, column].sum()))]
        for rank, gene in enumerate(chosen, 1):
            row: dict[str, Any] = {"factor": name, "rank": rank, "gene": str(var_names[gene])}
            row["loading"] = float(loadings[gene, column])
            if factors.inclusion is not None:
                row["inclusion"] = float(factors.inclusion[gene, column])
            rows.append(row)
    columns = ["factor", "rank", "gene", "loading"]
    return pd.DataFrame(rows, columns=columns + ["inclusion"] * (factors.inclusion is not None))


def marker_groups(
    factors: Factors, groups: Sequence[str] | pd.Series, *, min_cells: int = 3
) -> pd.DataFrame:
    r"""Which group of cells each factor marks.

    For every factor and group, the area under the ROC curve of the factor's score for the
    group against all other cells, :math:`U / (n_1 n_0)`, with the two-sided Mann-Whitney test.

    Parameters
    ----------
    factors
        What :func:`probinterp.factors` returned.
    groups
        Group of each cell, (N,).
    min_cells
        Smaller groups are left out.

    Returns
    -------
    DataFrame
        Columns ``factor``, ``group``, ``n_cells``, ``auc``, ``p_value`` and ``p_adjusted``
        (Benjamini-Hochberg over all rows); within a factor by falling \|auc - 1/2\|. An auc
        near 0 marks a group by low scores.
    """
    labels = pd.Series(np.asarray(groups)).astype(str).to_numpy()
    scores = factors.scores.numpy()
    if len(labels) != len(scores):
        raise ValueError(f"groups must label {len(scores)} cells, got {len(labels)}.")
    sizes = pd.Series(labels).value_counts()
    kept = sorted(sizes.index[(sizes >= min_cells) & (sizes < len(labels))])
    if not kept:
        raise ValueError(f"no group has at least {min_cells} cells and others beside it.")
    rows = []
    for column, name in enumerate(factors.names):
        for group in kept:
            inside = labels == group
            test = stats.mannwhitneyu(scores[inside, column], scores[~inside, column])
            auc = float(test.statistic) / (inside.sum() * (~inside).sum())
            rows.append((name, group, int(inside.sum()), auc, float(test.pvalue)))
    table = pd.DataFrame(rows, columns=["factor", "group", "n_cells", "auc", "p_value"])
    table["p_adjusted"] = stats.false_discovery_control(table["p_value"])
    table["order"] = table["factor"].map({name: i for i, name in enumerate(factors.names)})
    table["strength"] = -(table["auc"] - 0.5).abs()
    table = table.sort_values(["order", "strength"], kind="stable", ignore_index=True)
    return table.drop(columns=["order", "strength"])


def _positions(
    index: pd.Index, names: Sequence[str] | None, n: int, what: str, option: str
) -> np.ndarray:
    if names is None:
        if len(index) != n:
            raise ValueError(f"{what} have {n} rows, adata has {len(index)}; pass {option}=.")
        return np.arange(n)
    if len(names) != n:
        raise ValueError(f"{option} must hold {n} names, got {len(names)}.")
    found = index.get_indexer(pd.Index(names))
    if (found < 0).any():
        missing = [name for name, at in zip(names, found, strict=True) if at < 0]
        raise KeyError(f"{len(missing)} of {option} are not in adata, for example {missing[:3]}.")
    return found


def _spread(values: np.ndarray, positions: np.ndarray, n: int) -> np.ndarray:
    whole = np.full((n, values.shape[1]), np.nan, dtype=values.dtype)
    whole[positions] = values
    return whole
