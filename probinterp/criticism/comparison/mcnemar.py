"""McNemar's test of a change of accuracy."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy.special import bdtr, gammaln, ndtr

Method = Literal["midp", "exact", "asymptotic"]


def mcnemar(network_only: int, proxy_only: int, method: Method = "midp") -> float:
    r"""Two-sided p-value of no change of accuracy.

    .. math:: p_{exact} = \min\big(1, 2 P(B \le k)\big), \quad
        p_{mid} = p_{exact} - P(B = k), \quad B \sim \mathrm{Bin}(m, 1/2)

    with m discordant images and k the smaller of the two counts; for a tie
    :math:`p_{mid} = 1 - P(B = k) / 2`. Identical predictions (m = 0) give 1.

    Parameters
    ----------
    network_only, proxy_only
        Images that only one of the two recognises.
    method
        ``"midp"`` (the exact test is conservative), ``"exact"``, or ``"asymptotic"``: normal
        without continuity correction, for reference.

    Raises
    ------
    ValueError
        For a negative count or an unknown method.

    References
    ----------
    The McNemar test for binary matched-pairs data: mid-p and asymptotic are better than exact
    conditional (Fagerland, Lydersen and Laake, 2013).
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    if min(network_only, proxy_only) < 0:
        raise ValueError(f"counts must be >= 0, got {network_only} and {proxy_only}.")
    m, k = network_only + proxy_only, min(network_only, proxy_only)
    if m == 0:
        return 1.0
    if method == "asymptotic":
        return float(2 * ndtr(-abs(proxy_only - network_only) / np.sqrt(m)))
    exact = min(1.0, 2 * float(bdtr(k, m, 0.5)))
    if method == "exact":
        return exact
    at_k = float(np.exp(gammaln(m + 1) - gammaln(k + 1) - gammaln(m - k + 1) - m * np.log(2)))
    return 1 - at_k / 2 if 2 * k == m else exact - at_k
