"""Bootstrap of a change of accuracy: resampling images is drawing a multinomial table."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from probinterp.criticism.comparison.cells import Cells
from probinterp.criticism.comparison.intervals import Interval, normal_quantile


def acceleration(cells: Cells) -> float:
    r"""Acceleration of the bias-corrected bootstrap, in closed form.

    .. math:: a = \frac{1}{6 \sqrt n} \cdot
        \frac{b (1 - D)^3 - c (1 + D)^3 - (n - b - c) D^3}{n (q - D^2)^{3/2}}

    the skewness of the paired differences over :math:`6 \sqrt n`, which is what the jackknife
    gives for a mean; zero where all differences are equal.
    """
    n, difference = cells.n, cells.difference
    variance = cells.discordance - difference**2
    if variance <= 0:
        return 0.0
    third = (
        cells.proxy_only * (1 - difference) ** 3
        - cells.network_only * (1 + difference) ** 3
        - (n - cells.n_discordant) * difference**3
    ) / n
    return third / variance**1.5 / (6 * np.sqrt(n))


def bca_interval(
    cells: Cells, level: float = 0.95, *, n_boot: int = 10_000, seed: int = 0
) -> Interval:
    r"""Bias-corrected and accelerated bootstrap interval of the change of accuracy.

    Parameters
    ----------
    cells
        Table of counts.
    level
        Coverage of the two-sided interval.
    n_boot
        Number of resampled tables.
    seed
        Seed of these.

    Notes
    -----
    The change takes few values, so that ties count half in the bias correction
    :math:`z_0 = \Phi^{-1}(P(D^* < D) + P(D^* = D) / 2)`.

    References
    ----------
    Better bootstrap confidence intervals (Efron, 1987), section 6.
    """
    z = normal_quantile(level)
    if n_boot < 100:
        raise ValueError(f"n_boot must be at least 100, got {n_boot}.")
    n, net = cells.n, cells.proxy_only - cells.network_only
    shares = np.array([cells.proxy_only, cells.network_only, n - cells.n_discordant]) / n
    gained, lost, _ = np.random.default_rng(seed).multinomial(n, shares, size=n_boot).T
    draws = gained - lost
    below = ((draws < net).mean() + (draws <= net).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / n_boot, 1 - 0.5 / n_boot))
    shifted = bias + np.array([-z, z])
    levels = ndtr(bias + shifted / (1 - acceleration(cells) * shifted))
    low, high = np.quantile(draws, levels) / n
    return Interval(float(low), float(high), level, "BCa bootstrap")
