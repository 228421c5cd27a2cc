"""Is a change smaller than a margin? Non-inferiority and equivalence."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from probinterp.criticism.comparison.intervals import Interval
from probinterp.criticism.comparison.quantity import Comparison

Goal = Literal["noninferiority", "equivalence"]
Declared = Literal["before", "after"]


class MarginTest(NamedTuple):
    """Whether a change was shown to be smaller than a margin.

    Parameters
    ----------
    goal
        ``"noninferiority"``: no loss beyond the margin; ``"equivalence"``: no change beyond it.
    margin
        The margin.
    alpha
        One-sided level.
    p_value
        Of a change that is not inside the margin; of two one-sided tests the larger one.
    bounds
        One-sided bounds of the change; the test is passed iff the lower one is above minus the
        margin and, for equivalence, the upper one is below the margin.
    declared
        Whether the margin was fixed before the data were seen.
    """

    goal: Goal
    margin: float
    alpha: float
    p_value: float
    bounds: Interval
    declared: Declared

    @property
    def shown(self) -> bool:
        """Whether the change was shown to be inside the margin."""
        return self.p_value <= self.alpha


def noninferiority(
    comparison: Comparison, *, margin: float, alpha: float = 0.05, declared: Declared = "before"
) -> MarginTest:
    r"""Test that the proxy loses no more than a margin.

    Shown if the lower :math:`1 - \alpha` bound of the change is above :math:`-\delta`.

    Parameters
    ----------
    comparison
        Such as :func:`paired_accuracy` gives.
    margin
        Loss :math:`\delta` that would not matter, as a fraction: 0.01 is one percentage point of
        accuracy. There is no default: it belongs to the question and is fixed before looking.
    alpha
        One-sided level.
    declared
        ``"after"`` where the margin was chosen or changed once the data had been seen; verdicts
        say so.

    Raises
    ------
    ValueError
        If the margin or the level is impossible.

    References
    ----------
    Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design (Tango, 1998).
    """
    return _test(comparison, "noninferiority", margin, alpha, declared)


def equivalence(
    comparison: Comparison, *, margin: float, alpha: float = 0.05, declared: Declared = "before"
) -> MarginTest:
    r"""Test that the proxy changes no more than a margin (two one-sided tests).

    Shown if the :math:`1 - 2\alpha` interval of the change lies inside :math:`(-\delta, \delta)`;
    for parameters see :func:`noninferiority`.
    """
    return _test(comparison, "equivalence", margin, alpha, declared)


def margin_test(
    comparison: Comparison, goal: Goal, margin: float, alpha: float, declared: Declared
) -> MarginTest:
    """Either test, by its name."""
    if goal not in get_args(Goal):
        raise ValueError(f"goal must be one of {', '.join(get_args(Goal))}, got {goal!r}.")
    return _test(comparison, goal, margin, alpha, declared)


def _test(
    comparison: Comparison, goal: Goal, margin: float, alpha: float, declared: Declared
) -> MarginTest:
    if declared not in get_args(Declared):
        raise ValueError(
            f"declared must be one of {', '.join(get_args(Declared))}, got {declared!r}."
        )
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}.")
    if not 0 < margin < float("inf"):
        raise ValueError(f"margin must be positive, got {margin}.")
    if comparison.quantity.scale == 100 and margin >= 1:
        raise ValueError(f"margin is a fraction (0.01 is one percentage point), got {margin}.")
    p = comparison.p_above(-margin)
    if goal == "equivalence":
        p = max(p, comparison.p_below(margin))
    return MarginTest(goal, margin, alpha, p, comparison.bounds(alpha), declared)
