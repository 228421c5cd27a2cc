"""When enough replicates have been drawn: the decision is certain to a stated error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SequentialStop:
    r"""Draw until the two-sided decision at a level is certain, up to a given error.

    After n replicates of which k (ties counted by their share) are more extreme, a value
    :math:`p_0` of the p-value is excluded when the beta mixture of likelihood ratios

    .. math:: M_n(p_0) = \frac{B(k + 1, n - k + 1)}{p_0^k (1 - p_0)^{n - k}}

    reaches :math:`2 / \epsilon`. Under :math:`p = p_0` that happens, at any n, with probability at
    most :math:`\epsilon / 2` (Ville's inequality), so one may look as often as one likes. The
    decision is certain once :math:`\alpha / 2` and :math:`1 - \alpha / 2` are both excluded: p
    then lies outside (a rejection) or between them.

    Parameters
    ----------
    alpha
        Level of the two-sided test.
    error
        Probability, at most, that the decision differs from that of infinitely many draws,
        for each p-value.
    first_look
        Draws before the first look; each later look comes after a quarter more draws, so that a
        GPU is seldom waited for.

    Raises
    ------
    ValueError
        If a level or error does not lie between 0 and 1, or ``first_look`` is below 1.

    References
    ----------
    Statistical methods related to the law of the iterated logarithm (Robbins, 1970); A simple
    method for implementing Monte Carlo tests (Ding, Gandy and Hahn, 2020).
    """

    alpha: float = 0.05
    error: float = 1e-3
    first_look: int = 40

    def __post_init__(self) -> None:
        for name in ("alpha", "error"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        if self.first_look < 1:
            raise ValueError(f"first_look must be at least 1, got {self.first_look}.")

    def next_look(self, n_draws: int) -> int:
        """Number of draws at which to look again after a look at ``n_draws``."""
        return max(n_draws + 1, math.ceil(1.25 * n_draws))

    def decided(self, extreme: Tensor, n_draws: int) -> Tensor:
        """Which decisions are certain.

        Parameters
        ----------
        extreme
            Number of replicates above the data, ties counted by their share, shape (...).
        n_draws
            Number of replicates so far.

        Returns
        -------
        Tensor
            Boolean, shape (...).
        """
        k = extreme.double()
        mixture = torch.lgamma(k + 1) + torch.lgamma(n_draws - k + 1) - math.lgamma(n_draws + 2)
        needed = math.log(2 / self.error)
        decided = torch.ones_like(k, dtype=torch.bool)
        for boundary in (self.alpha / 2, 1 - self.alpha / 2):
            at_boundary = k * math.log(boundary) + (n_draws - k) * math.log1p(-boundary)
            decided &= mixture - at_boundary >= needed
        return decided
