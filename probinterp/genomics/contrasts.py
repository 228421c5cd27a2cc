"""Whether the activity of factors differs between groups, beyond technical batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from probinterp.genomics.stratified_ranks import van_elteren
from probinterp.genomics.validation import listing

DIFFERENCE = "difference"
NOT_SHOWN = "no difference shown"
CONFOUNDED = "confounded with batch"
TOO_FEW = "too few samples"
BY_DESIGN = "absent by design"
REST = "rest"


def factor_contrasts(
    scores: ArrayLike | pd.DataFrame,
    group: ArrayLike,
    *,
    batch: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    reference: str | None = None,
    active: ArrayLike | None = None,
    method: Literal["van_elteren", "permutation"] = "van_elteren",
    min_samples: int = 5,
    level: float = 0.05,
    n_permutations: int = 9999,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the activity of every factor between groups, within batches only.

    Samples are ranked among those of their batch, so that differences between batches neither make
    nor hide one between groups. Where groups and batches cannot be told apart there is a
    refusal instead of a p-value.

    Parameters
    ----------
    scores
        Activities, (N, K); the columns of a table name the factors.
    group
        Group of each sample, (N,).
    batch
        Technical batch of each sample, (N,), or None.
    names
        Names of the factors; default ``factor_1``, ... or the columns of ``scores``.
    reference
        Group that the others are compared with; None compares each group with all others.
    active
        Whether a factor may be active in a sample, (N, K) Boolean: factors of one study are zero
        elsewhere by design, which is no finding. None for factors that all samples have.
    method
        ``"van_elteren"`` for the normal approximation of :func:`van_elteren`,
        ``"permutation"`` for permutations within batches: better below some ten samples.
    min_samples
        Samples that either side must have in the batches that hold both.
    level
        Bound on the q-value for the status "difference".
    n_permutations, seed
        Of ``method="permutation"``.

    Returns
    -------
    pandas.DataFrame
        A row per factor and pair: factor, group, reference, effect (difference in standard
        deviations within group and batch), superiority (probability that the group is above the
        reference in the same batch), z, p_value, q_value (Benjamini-Hochberg over all rows that
        were tested), n_group and n_reference (in batches with both sides), n_left_out (in the
        others), strata (samples of group/reference per batch) and status: "difference",
        "no difference shown", "confounded with batch", "too few samples" (without any batch
        given) or "absent by design".

    Raises
    ------
    ValueError
        If shapes do not agree, scores are not finite, labels are missing, or there are fewer
        than two groups.

    Notes
    -----
    Scores that a model inferred with the groups at hand, such as the study of each sample, may
    differ for that reason; check with labels permuted by :func:`permuted_within` and a new fit.
    """
    factors, values = named_scores(scores, names)
    label, block = labels_of(group, len(values), "group"), labels_of(batch, len(values), "batch")
    allowed = _checked_active(active, values.shape)
    if method not in ("van_elteren", "permutation"):
        raise ValueError(f"method must be 'van_elteren' or 'permutation', got {method!r}.")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples}.")
    pairs = _pairs(label, reference)
    draws = n_permutations if method == "permutation" else 0
    rows: list[dict[str, Any]] = []
    patterns, pattern = np.unique(allowed, axis=1, return_inverse=True)
    for name, other in pairs:
        for number, may in enumerate(patterns.T):
            chosen = np.flatnonzero(pattern.ravel() == number)
            design = _design(label, block, may, name, other, min_samples, batch is not None)
            tested = _tested(values[:, chosen], design, draws, seed)
            for position, column in enumerate(chosen):
                outcome = {key: result[position] for key, result in tested.items()}
                rows.append(
                    {
                        "order": column,
                        "factor": factors[column],
                        "group": name,
                        "reference": REST if other is None else other,
                        **outcome,
                        **design.columns,
                    }
                )
    table = pd.DataFrame(rows).sort_values("order", kind="stable", ignore_index=True)
    return _judged(table.drop(columns="order"), level)


def named_scores(
    scores: ArrayLike | pd.DataFrame, names: Sequence[str] | None
) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the factors and their activities (N, K), checked."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"scores must be (N, K), got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"scores hold {(~np.isfinite(values)).sum()} values that are not finite.")
    if names is None and isinstance(scores, pd.DataFrame):
        names = [str(name) for name in scores.columns]
    if names is None:
        names = [f"factor_{k + 1}" for k in range(values.shape[1])]
    if len(names) != values.shape[1] or len(set(names)) < len(names):
        raise ValueError(f"expected {values.shape[1]} different names, got {listing(names)}.")
    return list(names), values


def labels_of(labels: ArrayLike | None, n_obs: int, what: str) -> NDArray[np.object_]:
    """Labels as strings, (N,); one label for all where there are none."""
    if labels is None:
        return np.full(n_obs, "all", dtype=object)
    series = pd.Series(np.asarray(labels, dtype=object))
    if len(series) != n_obs:
        raise ValueError(f"expected {what} for {n_obs} samples, got {len(series)}.")
    if series.isna().any():
        raise ValueError(f"{what} is missing for {series.isna().sum()} of {n_obs} samples.")
    return series.astype(str).to_numpy(dtype=object)


class _Design(NamedTuple):
    rows: NDArray[np.int64]
    in_group: NDArray[np.bool_]
    block: NDArray[np.object_]
    refusal: str | None
    columns: dict[str, Any]


def _design(
    label: NDArray[np.object_],
    block: NDArray[np.object_],
    may: NDArray[np.bool_],
    name: str,
    other: str | None,
    min_samples: int,
    batched: bool,
) -> _Design:
    """Samples of both sides in batches that have both, and why not if too few."""
    sides = label == name, label != name if other is None else label == other
    present = [side & may for side in sides]
    counts = {b: [int((side & (block == b)).sum()) for side in present] for b in np.unique(block)}
    both = [b for b, (n, m) in counts.items() if n and m]
    rows = np.flatnonzero((present[0] | present[1]) & np.isin(block, both))
    in_group = present[0][rows]
    n_group, n_reference = int(in_group.sum()), int((~in_group).sum())
    refusal = None
    if not (present[0].any() and present[1].any()):
        refusal = BY_DESIGN
    elif min(n_group, n_reference) < min_samples:
        enough = min(present[0].sum(), present[1].sum()) >= min_samples
        refusal = CONFOUNDED if batched and enough else TOO_FEW
    columns = {
        "n_group": n_group,
        "n_reference": n_reference,
        "n_left_out": int((present[0] | present[1]).sum()) - len(rows),
        "strata": "; ".join(f"{b} {n}/{m}" for b, (n, m) in counts.items() if n or m),
        "status": refusal,
    }
    return _Design(rows, in_group, block[rows], refusal, columns)


def _tested(
    values: NDArray[np.float64], design: _Design, n_permutations: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    if design.refusal:
        nothing = np.full(values.shape[1], np.nan)
        return {key: nothing for key in ("effect", "superiority", "z", "p_value")}
    result = van_elteren(
        values[design.rows],
        design.in_group,
        design.block,
        n_permutations=n_permutations,
        seed=seed,
    )
    return {
        "effect": result.shift,
        "superiority": result.superiority,
        "z": result.z,
        "p_value": result.p_value,
    }


def _judged(table: pd.DataFrame, level: float) -> pd.DataFrame:
    tested = table["p_value"].notna()
    q_value = np.full(len(table), np.nan)
    if tested.any():
        q_value[tested] = false_discovery_control(table.loc[tested, "p_value"].to_numpy())
    table.insert(list(table.columns).index("p_value") + 1, "q_value", q_value)
    found = np.where(q_value <= level, DIFFERENCE, NOT_SHOWN)
    table["status"] = np.where(tested, found, table["status"]).astype(object)
    return table


def _pairs(label: NDArray[np.object_], reference: str | None) -> list[tuple[str, str | None]]:
    groups = sorted(set(label))
    if len(groups) < 2:
        raise ValueError(f"expected two groups or more, got {listing(groups)}.")
    if reference is None:
        return [(name, None) for name in groups]
    if reference not in groups:
        raise ValueError(f"reference {reference!r} is none of the groups {listing(groups)}.")
    return [(name, reference) for name in groups if name != reference]


def _checked_active(active: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if active is None:
        return np.ones(shape, dtype=bool)
    allowed = np.asarray(active)
    if allowed.dtype != np.bool_ or allowed.shape != shape:
        raise ValueError(f"active must be Boolean {shape}, got {allowed.dtype} {allowed.shape}.")
    return allowed
