"""Tango's score test and interval for a change of accuracy."""

from __future__ import annotations

import math

from scipy.special import ndtr

from probinterp.criticism.comparison.cells import Cells
from probinterp.criticism.comparison.intervals import Interval, normal_quantile

NEXT_TO = 1e-13  # without discordance the score jumps at the estimate itself


def lost_share(network_only: int, proxy_only: int, n: int, difference: float) -> float:
    r"""Probability that only the network is right, most likely if accuracy changes by a value.

    The root of :math:`A q^2 + B q + C` with :math:`A = 2n`,
    :math:`B = -b - c + (2n - b + c) \Delta`, :math:`C = -c \Delta (1 - \Delta)`, where b images are
    recognised by the proxy only, c by the network only, and :math:`\Delta` is the change.
    """
    b, c = proxy_only, network_only
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(linear**2 - 8 * n * constant, 0.0))
    if linear > 0:  # the other form of the root, free of cancellation
        return -2 * constant / (root + linear)
    return (root - linear) / (4 * n)


def tango_score(network_only: int, proxy_only: int, n: int, difference: float) -> float:
    r"""Score statistic of a change :math:`\Delta`, which decreases in it.

    .. math:: T(\Delta) = \frac{b - c - n \Delta}
        {\sqrt{n (2 \tilde q + \Delta (1 - \Delta))}}
    """
    excess = proxy_only - network_only - n * difference
    scale = math.sqrt(_variance(network_only, proxy_only, n, difference))
    if scale == 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / scale


def tango_interval(network_only: int, proxy_only: int, n: int, level: float = 0.95) -> Interval:
    r"""Interval of all changes :math:`\Delta` with :math:`|T(\Delta)| \le z`.

    Parameters
    ----------
    network_only, proxy_only
        Images that only one of the two recognises.
    n
        Number of images.
    level
        Coverage of the two-sided interval.

    Raises
    ------
    ValueError
        If the counts do not fit.

    References
    ----------
    Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design (Tango, 1998).
    """
    Cells(0, network_only, proxy_only, n - network_only - proxy_only).checked()
    z = normal_quantile(level)
    low = _lower(network_only, proxy_only, n, z)
    return Interval(low, -_lower(proxy_only, network_only, n, z), level, "Tango")


def p_above(cells: Cells, threshold: float) -> float:
    """One-sided p-value of a change of at most the threshold: small where it is larger."""
    return float(ndtr(-tango_score(cells.network_only, cells.proxy_only, cells.n, threshold)))


def p_below(cells: Cells, threshold: float) -> float:
    """One-sided p-value of a change of at least the threshold: small where it is smaller."""
    return p_above(cells.swapped, -threshold)


def _variance(network_only: int, proxy_only: int, n: int, difference: float) -> float:
    lost = lost_share(network_only, proxy_only, n, difference)
    return max(n * (2 * lost + difference * (1 - difference)), 0.0)


def _lower(network_only: int, proxy_only: int, n: int, z: float) -> float:
    from scipy.optimize import brentq  # slow to import

    def short(difference: float) -> float:
        excess = proxy_only - network_only - n * difference
        return excess - z * math.sqrt(_variance(network_only, proxy_only, n, difference))

    top = (proxy_only - network_only) / n - NEXT_TO
    if top <= -1 or short(-1.0) <= 0:
        return -1.0
    return float(brentq(short, -1.0, top, xtol=1e-14))
