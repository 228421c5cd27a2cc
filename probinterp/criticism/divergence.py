"""How far apart two samples of one number are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

N_BINS, EMPTY_BIN = 50, 1e-5


class Distance(NamedTuple):
    """A distance between two samples with its Monte-Carlo standard error."""

    value: float
    error: float


def symmetrised_kl(first: Tensor, second: Tensor, n_bins: int = N_BINS) -> float:
    r"""Mean of both Kullback-Leibler divergences between histograms, in bits.

    .. math:: \tfrac12 \sum_b \Big(p_b \log_2 \frac{p_b}{q_b} + q_b \log_2 \frac{q_b}{p_b}\Big)

    Bins of equal width between the joint minimum and maximum; an empty bin counts as 1e-5 in a
    denominator.

    Parameters
    ----------
    first, second
        Samples of a number, one-dimensional.
    n_bins
        Number of bins.

    Returns
    -------
    float
        0 for equal histograms; 16.6 bits less the mean entropy of both when they do not overlap,
        so that values of disjoint samples tell their widths, not their distance.

    Raises
    ------
    ValueError
        If a sample is empty or not finite, or there is no bin.

    Notes
    -----
    Two samples of the same distribution do not give 0, since some bins are hit by one of them
    only: two normal samples of 200, 500 or 1000 values give .58, .20 or .09 bits (medians; 5 to
    95 % of them .39 to .86, .14 to .29, .06 to .12). Smaller values mean nothing.

    References
    ----------
    The Posterior Predictive Null (Moran, Cunningham and Blei, 2022).
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}.")
    a, b = _sample(first), _sample(second)
    limits = (min(a.min(), b.min()), max(a.max(), b.max()))
    p = np.histogram(a, n_bins, limits)[0] / len(a)
    q = np.histogram(b, n_bins, limits)[0] / len(b)
    return (_kl(p, q) + _kl(q, p)) / 2


def kolmogorov_smirnov(first: Tensor, second: Tensor) -> Distance:
    r"""Largest difference between two empirical distribution functions.

    .. math:: D = \max_t |F(t) - G(t)|, \qquad
        \mathrm{s.e.} = \sqrt{\frac{F (1 - F)}{R_1} + \frac{G (1 - G)}{R_2}}
        \text{ at the } t \text{ of the maximum}

    and the largest such error where several t reach the maximum.

    The best single threshold tells the two apart with probability (1 + D) / 2.

    Parameters
    ----------
    first, second
        Samples of a number, one-dimensional.

    Returns
    -------
    Distance
        D in [0, 1] and its standard error. Two samples of R values of the same distribution give
        about .87 (2 / R)^(1/2) on average, not 0.

    Raises
    ------
    ValueError
        If a sample is empty or not finite.
    """
    a, b = np.sort(_sample(first)), np.sort(_sample(second))
    thresholds = np.concatenate([a, b])
    f = np.searchsorted(a, thresholds, side="right") / len(a)
    g = np.searchsorted(b, thresholds, side="right") / len(b)
    distance = np.abs(f - g)
    at = distance > distance.max() - 1e-12
    variance = f[at] * (1 - f[at]) / len(a) + g[at] * (1 - g[at]) / len(b)
    return Distance(float(distance.max()), math.sqrt(variance.max()))


def _sample(values: Tensor) -> np.ndarray:
    if values.ndim != 1 or len(values) == 0 or not values.isfinite().all():
        raise ValueError(
            f"a sample must be one-dimensional, finite and not empty, got {values.dtype} of "
            f"shape {tuple(values.shape)}."
        )
    return values.detach().to(device="cpu", dtype=torch.float64).numpy()


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    hit = p > 0
    return float((p[hit] * np.log2(p[hit] / np.where(q[hit] > 0, q[hit], EMPTY_BIN))).sum())
