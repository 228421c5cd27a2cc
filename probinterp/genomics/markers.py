"""Which group of cells a factor marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, mannwhitneyu
from torch import Tensor

from probinterp.genomics.factors import factor_names


def marker_groups(scores: Any, groups: Any) -> pd.DataFrame:
    r"""Compare the scores of each group of cells with those of all other cells.

    For factor k and group g of :math:`n_g` cells the area under the ROC curve is the
    probability that a cell of the group has a larger score than a cell outside, ties halved:

    .. math:: \mathrm{AUC}_{gk} = U_{gk} / (n_g (N - n_g))

    with the Mann-Whitney statistic U, tested two-sided in its normal approximation with
    tie correction. Factors have no sign of their own: an AUC near 0 marks a group by low scores.

    Parameters
    ----------
    scores
        Factor scores, (N, K): tensor, array, or a DataFrame whose columns name the factors.
    groups
        Group of each cell, (N,), complete; at least two groups.

    Returns
    -------
    pandas.DataFrame
        One row per factor and group: factor, group, n_cells, auc, sign (+1 high, -1 low scores),
        separation (the AUC in the direction of the sign, 0.5 to 1), effect_size (difference of
        means over the pooled standard deviation; 0 for a constant factor), p_value, q_value
        (Benjamini-Hochberg over all rows) and best (the group with the largest separation
        of the factor; the first one of ties).

    Raises
    ------
    ValueError
        If shapes differ, a score is not finite, a group is missing, or there is one group only.

    References
    ----------
    On a test of whether one of two random variables is stochastically larger than the other
    (Mann and Whitney, 1947).
    """
    names, values = _named_scores(scores)
    labels = pd.Categorical(groups).remove_unused_categories()
    _check_groups(values, labels)
    rows = [_one_group(values, labels.codes == code) for code in range(len(labels.categories))]
    # (groups, K) each; the table is ordered by factor, then by group
    table = {column: np.stack([row[column] for row in rows], axis=1).ravel() for column in rows[0]}
    n_groups, n_factors = len(rows), values.shape[1]
    result = pd.DataFrame(
        {
            "factor": np.repeat(np.asarray(names, dtype=object), n_groups),
            "group": np.tile(np.asarray(labels.categories, dtype=object), n_factors),
            **table,
        }
    )
    result.insert(2, "n_cells", np.tile(np.bincount(labels.codes), n_factors))
    result["q_value"] = false_discovery_control(result["p_value"].to_numpy())
    separation = result["separation"].to_numpy().reshape(n_factors, n_groups)
    best = separation.argmax(axis=1)[:, None] == np.arange(n_groups)
    result["best"] = best.ravel()
    return result


def _named_scores(scores: Any) -> tuple[list[str], NDArray[np.float64]]:
    if isinstance(scores, pd.DataFrame):
        return [str(name) for name in scores.columns], scores.to_numpy(dtype=np.float64)
    array = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    if array.ndim != 2:
        raise ValueError(f"scores must have shape (N, K), got {array.shape}.")
    return factor_names(array.shape[1]), array.astype(np.float64)


def _check_groups(values: NDArray[np.float64], labels: pd.Categorical) -> None:
    if len(labels) != len(values):
        raise ValueError(f"expected one group for each of {len(values)} cells, got {len(labels)}.")
    if values.shape[1] == 0:
        raise ValueError("expected at least one factor, got scores without columns.")
    if not np.isfinite(values).all():
        cells = (~np.isfinite(values)).any(axis=1).sum()
        raise ValueError(f"scores must be finite, but {cells} cells have some that are not.")
    if (labels.codes < 0).any():
        raise ValueError(f"groups is missing (NaN) for {(labels.codes < 0).sum()} cells.")
    if len(labels.categories) < 2:
        raise ValueError(f"expected at least 2 groups, got {list(labels.categories)}.")


def _one_group(values: NDArray[np.float64], inside: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    group, others = values[inside], values[~inside]
    constant = np.ptp(values, axis=0) == 0
    with np.errstate(invalid="ignore", divide="ignore"):  # constant scores have no spread
        test = mannwhitneyu(group, others, axis=0, method="asymptotic")
        squares = ((group - group.mean(0)) ** 2).sum(0) + ((others - others.mean(0)) ** 2).sum(0)
        pooled = np.sqrt(squares / max(len(values) - 2, 1))
        effect = (group.mean(0) - others.mean(0)) / pooled
    auc = test.statistic / (len(group) * len(others))
    return {
        "auc": auc,
        "sign": np.where(auc >= 0.5, 1, -1),
        "separation": np.maximum(auc, 1 - auc),
        "effect_size": np.where(constant, 0.0, effect),
        "p_value": np.where(constant, 1.0, test.pvalue),
    }
