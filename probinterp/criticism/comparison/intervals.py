"""Intervals in closed form, of a change of accuracy and of a single accuracy."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import ndtri

from probinterp.criticism.comparison.cells import Cells


class Interval(NamedTuple):
    """An interval and what it is.

    Parameters
    ----------
    low, high
        Its ends.
    level
        Nominal coverage.
    method
        How it was made.
    """

    low: float
    high: float
    level: float
    method: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def half_width(self) -> float:
        """Half the distance between its ends."""
        return (self.high - self.low) / 2


def normal_quantile(level: float) -> float:
    """Two-sided normal quantile of an interval with this coverage."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    return float(ndtri((1 + level) / 2))


def wald_interval(cells: Cells, level: float = 0.95) -> Interval:
    r"""For reference: :math:`D \pm z \sqrt{(q - D^2) / n}`, without width where nothing differs."""
    return _around(cells.difference, cells.discordance, cells.n, level, "Wald")


def agresti_min_interval(cells: Cells, level: float = 0.95) -> Interval:
    """Wald interval after adding one half to each of the four cells.

    References
    ----------
    Simple improved confidence intervals for comparing matched proportions (Agresti and Min, 2005).
    """
    n = cells.n + 2
    difference = (cells.proxy_only - cells.network_only) / n
    return _around(difference, (cells.n_discordant + 1) / n, n, level, "Agresti-Min")


def bonett_price_interval(cells: Cells, level: float = 0.95) -> Interval:
    """Wald interval after adding one to each of the discordant cells.

    References
    ----------
    Adjusted Wald confidence interval for a difference of binomial proportions based on paired data
    (Bonett and Price, 2012).
    """
    n = cells.n + 2
    difference = (cells.proxy_only - cells.network_only) / n
    return _around(difference, (cells.n_discordant + 2) / n, n, level, "Bonett-Price")


def wilson_interval(n_correct: int, n: int, level: float = 0.95) -> Interval:
    r"""Score interval of a single accuracy.

    .. math:: \frac{\hat p + z^2 / 2n}{1 + z^2 / n} \pm
        \frac{z}{1 + z^2 / n} \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}

    References
    ----------
    Probable inference, the law of succession, and statistical inference (Wilson, 1927).
    """
    if not 0 <= n_correct <= n or n < 1:
        raise ValueError(f"there must be 0 <= n_correct <= n images, got {n_correct} of {n}.")
    z, share = normal_quantile(level), n_correct / n
    scale = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0), level, "Wilson")


def _around(difference: float, discordance: float, n: int, level: float, name: str) -> Interval:
    half = normal_quantile(level) * math.sqrt(max(discordance - difference**2, 0.0) / n)
    return Interval(max(difference - half, -1.0), min(difference + half, 1.0), level, name)
