"""Posterior of a change of accuracy under a Dirichlet prior on the four cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import betainc, betaincinv

from probinterp.criticism.comparison.cells import Cells
from probinterp.criticism.comparison.intervals import Interval, normal_quantile

N_NODES = 1000  # of the integral over the discordance


class ChangePosterior(NamedTuple):
    """What is believed of the change of accuracy after the data.

    Parameters
    ----------
    mean
        Posterior mean.
    interval
        Equal-tailed interval.
    rope
        Half-width of the region that counts as no change.
    p_not_worse
        Probability that the change is above minus ``rope``.
    p_within
        Probability that the absolute change is below ``rope``.
    p_worse
        Probability that accuracy falls at all.
    """

    mean: float
    interval: Interval
    rope: float
    p_not_worse: float
    p_within: float
    p_worse: float


def change_posterior(
    cells: Cells, rope: float = 0.01, *, level: float = 0.95, prior: float = 0.5
) -> ChangePosterior:
    r"""Posterior of the change under :math:`\mathrm{Dirichlet}(n_{ab} + \text{prior})`.

    The discordance q and the share s of gains among discordant images are independent Beta
    variables and :math:`D = q (2s - 1)`, so that

    .. math:: P(D \le t) = E_q\Big[ I_{(1 + t/q)/2}\big(n_{01} + \tfrac12,
        n_{10} + \tfrac12\big) \Big]

    is one integral; it is summed over quantiles of q, without random numbers.

    Parameters
    ----------
    cells
        Table of counts.
    rope
        Half-width of the region of practical equivalence, as a fraction.
    level
        Mass of the interval.
    prior
        Prior count of each cell; one half is Jeffreys' prior.
    """
    normal_quantile(level)
    if not 0 < rope < 1 or prior <= 0:
        raise ValueError(f"there must be 0 < rope < 1 and prior > 0, got {rope} and {prior}.")
    from scipy.optimize import brentq  # slow to import

    gained, lost = cells.proxy_only + prior, cells.network_only + prior
    rest = cells.both + cells.neither + 2 * prior
    at = (np.arange(N_NODES) + 0.5) / N_NODES
    discordance = betaincinv(gained + lost, rest, at)

    def below(change: float) -> float:
        share = np.clip((1 + change / discordance) / 2, 0, 1)
        return float(betainc(gained, lost, share).mean())

    tail = (1 - level) / 2
    low, high = (
        float(brentq(lambda change, mass: below(change) - mass, -1, 1, args=(mass,)))
        for mass in (tail, 1 - tail)
    )
    mean = (gained - lost) / (gained + lost + rest)
    interval = Interval(low, high, level, "Dirichlet posterior")
    worse = below(-rope)
    return ChangePosterior(mean, interval, rope, 1 - worse, below(rope) - worse, below(0.0))
