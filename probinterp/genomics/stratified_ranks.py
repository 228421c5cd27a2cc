"""Comparison of two groups by ranks within strata, for many columns at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

CHUNK = 500  # permutations held together


class StratifiedRanks(NamedTuple):
    """Result of :func:`van_elteren` for K columns.

    Parameters
    ----------
    z
        Standardised statistic, (K,), positive where the group is higher.
    p_value
        Two-sided, (K,).
    superiority
        Probability that a sample of the group is above one of the reference in the same stratum,
        ties counting half, (K,).
    shift
        Mean difference within strata over the standard deviation within group and stratum, (K,).
    """

    z: NDArray[np.float64]
    p_value: NDArray[np.float64]
    superiority: NDArray[np.float64]
    shift: NDArray[np.float64]


def permuted_within(labels: ArrayLike, strata: ArrayLike, seed: int | np.random.Generator) -> Any:
    """Permute labels among the samples of each stratum.

    Parameters
    ----------
    labels
        Labels, (N,), of any type.
    strata
        Stratum of each sample, (N,).
    seed
        Seed, or a generator to draw from.

    Returns
    -------
    numpy.ndarray
        The labels in another order, (N,); each stratum holds the same ones as before.
    """
    labels = np.asarray(labels)
    codes = pd.factorize(np.asarray(strata))[0]
    if labels.shape != codes.shape:
        raise ValueError(f"expected labels as long as strata, got {labels.shape}, {codes.shape}.")
    rng = np.random.default_rng(seed)
    permuted = labels.copy()
    for code in range(codes.max(initial=-1) + 1):
        inside = np.flatnonzero(codes == code)
        permuted[inside] = labels[rng.permutation(inside)]
    return permuted


def van_elteren(
    values: ArrayLike,
    in_group: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    n_permutations: int = 0,
    seed: int = 0,
) -> StratifiedRanks:
    r"""Stratified Wilcoxon test of a group against the other samples.

    With mid-ranks r within stratum b, of which n of N samples are in the group,

    .. math::
        T = \sum_b \frac{1}{N_b + 1} \Big(\sum_{i \in \text{group}} r_i
        - \frac{n_b (N_b + 1)}{2}\Big), \quad
        \mathrm{Var}\, T = \sum_b \frac{n_b (N_b - n_b)}{(N_b + 1)^2 N_b (N_b - 1)}
        \sum_{i \in b} (r_i - \bar r)^2,

    where the variance is exact under permutation within strata, with ties too. Strata that lack
    one side do not count.

    Parameters
    ----------
    values
        Columns to test, (N, K) or (N,).
    in_group
        Whether a sample is in the group, (N,).
    strata
        Stratum of each sample, (N,); None for one.
    n_permutations
        0 takes the normal approximation; otherwise p-values are
        (1 + permutations at least as extreme) / (1 + permutations within strata).
    seed
        Seed of the permutations.

    Returns
    -------
    StratifiedRanks
        Columns without spread have z = 0, p = 1, superiority 1/2 and shift 0.

    Raises
    ------
    ValueError
        If values are not finite, shapes do not agree or no stratum has both sides.

    References
    ----------
    On the combination of independent two sample tests of Wilcoxon (van Elteren, 1960).
    """
    columns, group, codes = _checked(values, in_group, strata)
    informative = [
        inside
        for code in np.unique(codes)
        if 0 < group[inside := np.flatnonzero(codes == code)].sum() < len(inside)
    ]
    if not informative:
        raise ValueError("no stratum holds samples of both sides.")
    rows = np.concatenate(informative)
    scores = np.concatenate([_centred_ranks(columns[inside]) for inside in informative])
    member = group[rows]
    sizes = np.array([len(inside) for inside in informative])
    within = np.repeat(np.arange(len(sizes)), sizes)
    statistic = scores[member].sum(axis=0)
    spread = np.sqrt(_variance(scores, member, within))
    some = spread > 1e-12
    z = np.divide(statistic, spread, out=np.zeros_like(statistic), where=some)
    if n_permutations:
        p_value = _permuted(scores, member, within, statistic, n_permutations, seed)
    else:
        p_value = 2 * norm.sf(np.abs(z))
    pairs = np.array([member[within == b].sum() for b in range(len(sizes))])
    weight = (pairs * (sizes - pairs) / (sizes + 1)).sum()
    shift = _shift(columns[rows], member, within)
    return StratifiedRanks(z, np.where(some, p_value, 1.0), 0.5 + statistic / weight, shift)


def _checked(
    values: ArrayLike, in_group: ArrayLike, strata: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    columns = np.asarray(values, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    group = np.asarray(in_group)
    if group.dtype != np.bool_:
        raise TypeError(f"in_group must be Boolean, got {group.dtype}.")
    codes = np.zeros(len(group), dtype=np.int64)
    if strata is not None:
        codes = pd.factorize(np.asarray(strata))[0]
    if columns.ndim != 2 or not len(columns) == len(group) == len(codes):
        raise ValueError(
            f"expected values (N, K), in_group (N,) and strata (N,), got "
            f"{columns.shape}, {group.shape} and {codes.shape}."
        )
    if not np.isfinite(columns).all():
        raise ValueError("values must be finite.")
    return columns, group, codes


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-ranks less their mean, over N + 1."""
    ranks = rankdata(values, axis=0)
    return (ranks - (len(values) + 1) / 2) / (len(values) + 1)


def _variance(
    scores: NDArray[np.float64], member: NDArray[np.bool_], within: NDArray[np.int64]
) -> NDArray[np.float64]:
    total = np.zeros(scores.shape[1])
    for stratum in np.unique(within):
        inside = within == stratum
        size, n = inside.sum(), member[inside].sum()
        total += n * (size - n) / (size * (size - 1)) * (scores[inside] ** 2).sum(axis=0)
    return total


def _shift(
    values: NDArray[np.float64], member: NDArray[np.bool_], within: NDArray[np.int64]
) -> NDArray[np.float64]:
    difference, residual = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    weights, freedom = 0.0, 0
    for stratum in np.unique(within):
        sides = [values[(within == stratum) & (member == side)] for side in (True, False)]
        n, m = map(len, sides)
        difference += n * m / (n + m) * (sides[0].mean(axis=0) - sides[1].mean(axis=0))
        weights += n * m / (n + m)
        for side in sides:
            residual += ((side - side.mean(axis=0)) ** 2).sum(axis=0)
            freedom += len(side) - 1
    deviation = np.sqrt(residual / max(freedom, 1))
    mean = difference / weights
    tiny = 1e-12 * np.abs(values).max(axis=0, initial=0.0)
    flat = deviation <= tiny
    unbounded = np.where(np.abs(mean) > tiny, np.copysign(np.inf, mean), 0.0)
    return np.where(flat, unbounded, mean / np.where(flat, 1.0, deviation))


def _permuted(
    scores: NDArray[np.float64],
    member: NDArray[np.bool_],
    within: NDArray[np.int64],
    statistic: NDArray[np.float64],
    n_permutations: int,
    seed: int,
) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    extreme = np.zeros(scores.shape[1])
    limit = np.abs(statistic) * (1 - 1e-9) - 1e-12
    for start in range(0, n_permutations, CHUNK):
        labels = np.tile(member, (min(CHUNK, n_permutations - start), 1))
        for stratum in np.unique(within):
            inside = np.flatnonzero(within == stratum)
            labels[:, inside] = rng.permuted(labels[:, inside], axis=1)
        extreme += (np.abs(labels.astype(np.float64) @ scores) >= limit).sum(axis=0)
    return (1 + extreme) / (1 + n_permutations)
