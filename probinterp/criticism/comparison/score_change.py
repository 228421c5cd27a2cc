"""Change of a score that every image has: reconstruction, margins, divergences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from scipy.special import stdtr, stdtrit

from probinterp.criticism.comparison.cells import numbers
from probinterp.criticism.comparison.intervals import Interval
from probinterp.criticism.comparison.quantity import Quantity
from probinterp.criticism.comparison.sign_flip import sign_flip


class ScoreChange(NamedTuple):
    """Change of a mean score, paired by image; can be judged by :func:`verdict`.

    Parameters
    ----------
    n
        Number of images.
    mean_first, mean_second
        Mean score of each.
    standard_error
        Standard error of the change.
    p_change
        Two-sided p-value of no change (sign-flip permutation).
    quantity
        What changes.
    """

    n: int
    mean_first: float
    mean_second: float
    standard_error: float
    p_change: float
    quantity: Quantity

    @property
    def difference(self) -> float:
        """Mean of the second minus mean of the first."""
        return self.mean_second - self.mean_first

    @property
    def spread(self) -> float:
        """Variance of one image's change."""
        return self.n * self.standard_error**2

    @property
    def evidence(self) -> str:
        """What the comparison rests on."""
        return f"{self.n:,} images"

    def p_above(self, threshold: float) -> float:
        """One-sided p-value of a change of at most the threshold (paired t-test)."""
        return self._p(threshold - self.difference)

    def p_below(self, threshold: float) -> float:
        """One-sided p-value of a change of at least the threshold (paired t-test)."""
        return self._p(self.difference - threshold)

    def bounds(self, alpha: float) -> Interval:
        """Lower and upper bound of the change, each at one-sided level ``alpha``."""
        half = float(stdtrit(self.n - 1, 1 - alpha)) * self.standard_error
        level = 1 - 2 * alpha
        return Interval(self.difference - half, self.difference + half, level, "paired t")

    def _p(self, excess: float) -> float:
        if self.standard_error == 0:  # all differences are equal: what a sign test says of them
            return 0.5 if excess == 0 else abs(float(excess > 0) - 0.5**self.n)
        return float(stdtr(self.n - 1, excess / self.standard_error))


def score_change(
    first: Any,
    second: Any,
    *,
    name: str = "score",
    unit: str = "",
    n_permutations: int = 10_000,
    seed: int = 0,
) -> ScoreChange:
    r"""Compare two scores of the same images, such as those of two proxies.

    .. math:: \bar d = \frac1N \sum_i (s_i' - s_i), \qquad
        \mathrm{se}^2 = \frac{1}{N (N - 1)} \sum_i (d_i - \bar d)^2

    Parameters
    ----------
    first, second
        Score of each image, (N,) each and in the same order. More is better: hand in errors with
        a minus sign.
    name, unit
        What the score is called, and its unit.
    n_permutations, seed
        Sign patterns of the permutation test, and their seed.

    Raises
    ------
    ValueError
        If they differ in length, or there are fewer than two images.
    """
    a, b = numbers(first, "first"), numbers(second, "second")
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            "scores must be vectors of the same images, at least 2, got shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )
    flipped = sign_flip(b - a, n_permutations=n_permutations, seed=seed)
    return ScoreChange(
        n=len(a),
        mean_first=a.mean().item(),
        mean_second=b.mean().item(),
        standard_error=(b - a).std().item() / math.sqrt(len(a)),
        p_change=flipped.p_value.item(),
        quantity=Quantity(name, f" {unit}" if unit else "", 1, "sign-flip permutation"),
    )
