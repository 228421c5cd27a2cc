"""Bands that the empirical distribution of uniform values seldom leaves anywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRID: Array = np.arange(1, 200) / 200  # where distribution functions are compared
LARGEST_EXACT = 1000  # values up to which the pointwise level is computed for their number
STEPS = 24  # halvings of the logarithm of the pointwise level


def uniform_band(n: int, level: float = 0.95) -> tuple[Array, Array]:
    r"""Simultaneous band of the empirical distribution function of n independent uniforms.

    .. math:: \Pr\big(L_i \le n \hat F(u_i) \le H_i \text{ for all } i\big) \ge \mathrm{level},
        \qquad L_i, H_i = \text{quantiles } \gamma / 2, 1 - \gamma / 2
        \text{ of } \mathrm{Bin}(n, u_i)

    with the largest :math:`\gamma` that keeps the level, found by bisection.

    Parameters
    ----------
    n
        Number of values.
    level
        Probability that uniform values stay inside everywhere on :data:`GRID`.

    Returns
    -------
    tuple
        Lower and upper bound of :math:`\hat F` at the points of :data:`GRID`, (199,) each.

    Raises
    ------
    ValueError
        If ``n`` is not positive or ``level`` not between 0 and 1.

    Notes
    -----
    The probability is exact: counts at rising points are a Markov chain. For more than 1,000
    values :math:`\gamma` of 1,000 is taken, from which it hardly differs.

    References
    ----------
    Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and
    multiple sample comparison (Säilynoja, Bürkner and Vehtari, 2022), sections 2.2 and 3.1.
    """
    if n < 1:
        raise ValueError(f"a band needs at least 1 value, got {n}.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    low, high = _counts(n, _pointwise(min(n, LARGEST_EXACT), level))
    return low / n, high / n


def _counts(n: int, gamma: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pointwise bounds of the number of values below each point of the grid."""
    from scipy.stats import binom  # slow to import, seldom needed

    low, high = (binom.ppf(q, n, GRID).astype(np.int64) for q in (gamma / 2, 1 - gamma / 2))
    return low, high


@lru_cache(maxsize=64)
def _pointwise(n: int, level: float) -> float:
    """Largest pointwise level gamma whose bounds hold together with probability ``level``."""
    low, high = np.log((1 - level) / len(GRID) / 2), np.log(1 - level)
    for _ in range(STEPS):
        middle = (low + high) / 2
        holds = _inside_probability(n, *_counts(n, float(np.exp(middle)))) >= level
        low, high = (middle, high) if holds else (low, middle)
    return float(np.exp(low))


def _inside_probability(n: int, low: NDArray[np.int64], high: NDArray[np.int64]) -> float:
    """Probability that the counts of n uniforms stay within the bounds at every point."""
    from scipy.special import gammaln

    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    before, mass, last = np.zeros(1, dtype=np.int64), np.ones(1), 0.0
    for u, lowest, highest in zip(GRID, low, high, strict=True):
        after = np.arange(lowest, highest + 1)
        step = after - before[:, None]
        left = n - before[:, None]
        share = (u - last) / (1 - last)  # of the values above the last point
        possible = step >= 0
        step = np.where(possible, step, 0)
        log_pmf = (
            log_factorial[left]
            - log_factorial[step]
            - log_factorial[left - step]
            + step * np.log(share)
            + (left - step) * np.log1p(-share)
        )
        mass = mass @ np.where(possible, np.exp(log_pmf), 0.0)
        before, last = after, u
    return float(mass.sum())
