"""How much of each factor's variance batch, group and library size explain, alone and together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from probinterp.genomics.contrasts import labels_of, named_scores

BATCH_ALONE = "batch alone"
GROUP = "group beyond batch"
INSEPARABLE = "group and batch cannot be separated"
NEITHER = "neither shown"

Array = NDArray[np.float64]


def variance_shares(
    scores: ArrayLike | pd.DataFrame,
    group: ArrayLike,
    batch: ArrayLike,
    library_size: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.05,
    n_permutations: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Shares of the variance of every factor by batch, group and log library size.

    With :math:`R^2(S)` of the least-squares fit on the terms S, the share of a term t alone is
    :math:`R^2(t)`, and after the others (the last in a sequence of sums of squares)
    :math:`R^2(\text{all}) - R^2(\text{all without } t)`. Adjusted shares use
    :math:`1 - (1 - R^2)(N - 1) / (N - 1 - \mathrm{df})`. The p-values permute the residuals of
    the smaller fit, within batches where batch is among its terms.

    Parameters
    ----------
    scores
        Activities, (N, K); the columns of a table name the factors.
    group
        Group or study of each sample, (N,).
    batch
        Technical batch of each sample, (N,).
    library_size
        Total count of each sample, (N,), positive.
    names
        Names of the factors; default ``factor_1``, ... or the columns of ``scores``.
    level
        Bound on p-values in ``finding``.
    n_permutations
        Permutations behind each p-value.
    seed
        Seed of the permutations.

    Returns
    -------
    pandas.DataFrame
        A row per factor: factor; for t in batch, group and library ``t_alone``,
        ``t_alone_adjusted``, ``t_alone_p``, ``t_after``, ``t_after_adjusted`` and ``t_after_p``
        (NaN where the other terms determine t); unexplained; explained_by_batch_alone; and
        finding: "group beyond batch", "batch alone" (a share of batch is shown, none of the group
        beyond it), "group and batch cannot be separated" (batches determine groups) or
        "neither shown".

    Raises
    ------
    ValueError
        If shapes do not agree, scores are not finite, library sizes not positive, or there are
        no degrees of freedom left.

    References
    ----------
    A nonstochastic interpretation of reported significance levels (Freedman and Lane, 1983).
    """
    factors, values = named_scores(scores, names)
    n_obs = len(values)
    block = labels_of(batch, n_obs, "batch")
    terms = {
        "batch": _indicators(block),
        "group": _indicators(labels_of(group, n_obs, "group")),
        "library": _log_size(library_size, n_obs),
    }
    if _basis(*terms.values()).shape[1] >= n_obs:
        raise ValueError(f"{n_obs} samples leave no residual for these batches and groups.")
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {"factor": factors}
    for name, term in terms.items():
        others = [other for key, other in terms.items() if key != name]
        anywhere = np.full(n_obs, "all", dtype=object)
        strata = anywhere if name == "batch" else block
        for suffix, smaller, within in (("alone", [], anywhere), ("after", others, strata)):
            share, adjusted = _shares(values, smaller, term)
            key = f"{name}_{suffix}"
            columns[key], columns[f"{key}_adjusted"] = share, adjusted
            columns[f"{key}_p"] = _p_value(values, smaller, term, within, n_permutations, rng)
    columns["unexplained"] = 1 - _explained(values, _basis(*terms.values()))
    return _with_finding(pd.DataFrame(columns), level)


def _with_finding(table: pd.DataFrame, level: float) -> pd.DataFrame:
    by_group = table["group_after_p"] <= level
    by_batch = (table["batch_alone_p"] <= level) & ~by_group
    unknown = table["group_after_p"].isna() & table["group_alone_p"].notna()
    unknown &= (table["group_alone_p"] <= level) | (table["batch_alone_p"] <= level)
    table["explained_by_batch_alone"] = by_batch & ~unknown
    table["finding"] = np.select(
        [unknown, by_group, by_batch], [INSEPARABLE, GROUP, BATCH_ALONE], NEITHER
    ).astype(object)
    return table


def _indicators(labels: NDArray[np.object_]) -> Array:
    return np.asarray(pd.get_dummies(pd.Series(labels)), dtype=np.float64)


def _log_size(library_size: ArrayLike, n_obs: int) -> Array:
    size = np.asarray(library_size, dtype=np.float64)
    if size.shape != (n_obs,):
        raise ValueError(f"expected library_size for {n_obs} samples, got shape {size.shape}.")
    if not ((size > 0) & np.isfinite(size)).all():
        raise ValueError("library_size must be positive and finite.")
    return np.log(size)[:, None]


def _basis(*terms: Array) -> Array:
    """Orthonormal columns that span the terms and the intercept."""
    n_obs = len(terms[0])
    centred = np.column_stack([term - term.mean(axis=0) for term in terms])
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    kept = left[:, size > 1e-9 * max(size.max(initial=0.0), 1.0)]
    return np.column_stack([np.full(n_obs, n_obs**-0.5), kept])


def _bases(values: Array, smaller: list[Array], term: Array) -> tuple[Array, Array]:
    """Basis of the smaller fit, and what the term adds to it, (N, df)."""
    n_obs = len(values)
    small = _basis(*smaller) if smaller else np.full((n_obs, 1), n_obs**-0.5)
    rest = term - small @ (small.T @ term)
    left, size, _ = np.linalg.svd(rest, full_matrices=False)
    return small, left[:, size > 1e-9 * n_obs**0.5]


def _explained(values: Array, basis: Array) -> Array:
    centred = values - values.mean(axis=0)
    total = (centred**2).sum(axis=0)
    fitted = ((basis.T @ centred) ** 2).sum(axis=0)
    return np.divide(fitted, total, out=np.zeros_like(total), where=_spread(values))


def _spread(values: Array) -> NDArray[np.bool_]:
    return np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(axis=0)


def _shares(values: Array, smaller: list[Array], term: Array) -> tuple[Array, Array]:
    small, added = _bases(values, smaller, term)
    before = _explained(values, small)
    after = _explained(values, np.column_stack([small, added]))
    free = len(values) - 1
    n_small = small.shape[1] - 1
    n_all = n_small + added.shape[1]
    adjusted = (1 - before) * free / (free - n_small) - (1 - after) * free / (free - n_all)
    return after - before, np.where(_spread(values), adjusted, 0.0)


def _p_value(
    values: Array,
    smaller: list[Array],
    term: Array,
    strata: NDArray[np.object_],
    n_permutations: int,
    rng: np.random.Generator,
) -> Array:
    """Share of permuted residuals whose ratio of sums of squares is as large."""
    small, added = _bases(values, smaller, term)
    if not added.shape[1]:
        return np.full(values.shape[1], np.nan)
    fitted = small @ (small.T @ values)
    residual = values - fitted
    observed = _ratio(residual, small, added)
    places = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    extreme = np.zeros(values.shape[1])
    order = np.arange(len(values))
    for _ in range(n_permutations):
        for inside in places:
            order[inside] = rng.permutation(inside)
        extreme += _ratio(residual[order], small, added) >= observed * (1 - 1e-9)
    return np.where(_spread(values), (1 + extreme) / (1 + n_permutations), 1.0)


def _ratio(residual: Array, small: Array, added: Array) -> Array:
    gained = ((added.T @ residual) ** 2).sum(axis=0)
    left = (residual**2).sum(axis=0) - ((small.T @ residual) ** 2).sum(axis=0) - gained
    return gained / np.maximum(left, 1e-300)
