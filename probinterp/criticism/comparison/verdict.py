"""May the proxy stay in the network's place: one of three answers and the reason for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from probinterp.criticism.comparison.floor import Floor
from probinterp.criticism.comparison.margins import Declared, Goal, MarginTest, margin_test
from probinterp.criticism.comparison.power import Kind, margin_factor
from probinterp.criticism.comparison.quantity import Comparison

Decision = Literal["preserves", "changes", "not enough data to tell"]

ADVISED_POWER = 0.8


@dataclass(frozen=True)
class Verdict:
    """What a paired comparison says; ``str(verdict)`` is the sentence.

    Parameters
    ----------
    decision
        ``"preserves"``: the change was shown to be inside the margin. ``"changes"``: it was not,
        and a change was shown, which for non-inferiority must be a loss. ``"not enough data to
        tell"``: neither was shown; a difference that is not significant never counts as preserved.
    statement
        English sentences.
    difference
        Estimated change.
    margin_test
        Test of the margin, before any correction for several comparisons.
    p_preserved
        p-value of a change outside the margin, after such a correction.
    p_change
        Two-sided p-value of no change, after such a correction.
    beyond
        Whether the change was shown to be larger than the margin.
    detected
        Whether any change was shown. It may be, and yet be inside the margin.
    """

    decision: Decision
    statement: str
    difference: float
    margin_test: MarginTest
    p_preserved: float
    p_change: float
    beyond: bool
    detected: bool

    def __str__(self) -> str:
        return self.statement

    @property
    def passed(self) -> bool | None:
        """True where the proxy preserves, False where it changes, None without an answer."""
        answers: dict[str, bool | None] = {"preserves": True, "changes": False}
        return answers.get(self.decision)

    def numbers(self) -> dict[str, Any]:
        """All of it as plain numbers and words, for a record or a table."""
        tested = self.margin_test
        return {
            "decision": self.decision,
            "statement": self.statement,
            "difference": self.difference,
            "goal": tested.goal,
            "margin": tested.margin,
            "alpha": tested.alpha,
            "low": tested.bounds.low,
            "high": tested.bounds.high,
            "declared": tested.declared,
            "p_preserved": self.p_preserved,
            "p_change": self.p_change,
            "beyond": self.beyond,
            "detected": self.detected,
        }


def verdict(
    comparison: Comparison,
    *,
    margin: float,
    goal: Goal = "noninferiority",
    alpha: float = 0.05,
    declared: Declared = "before",
    floor: Floor | None = None,
) -> Verdict:
    """Say whether a proxy preserves what was compared.

    Parameters
    ----------
    comparison
        Such as :func:`paired_accuracy` gives.
    margin, alpha, declared
        See :func:`noninferiority`.
    goal
        ``"noninferiority"``: a gain is welcome; ``"equivalence"``: it counts as a change too.
    floor
        Discordance of the network with itself, see :func:`self_discordance`; it is quoted.

    Raises
    ------
    ValueError
        If the margin or the level is impossible.
    """
    tested = margin_test(comparison, goal, margin, alpha, declared)
    p_beyond = comparison.p_below(-margin)
    if goal == "equivalence":
        p_beyond = min(p_beyond, comparison.p_above(margin))
    return decide(comparison, tested, tested.p_value, comparison.p_change, p_beyond, floor=floor)


def decide(
    comparison: Comparison,
    tested: MarginTest,
    p_preserved: float,
    p_change: float,
    p_beyond: float,
    *,
    floor: Floor | None = None,
    correction: str = "",
) -> Verdict:
    """Verdict from p-values, which a family of comparisons has corrected."""
    alpha = tested.alpha
    detected, beyond = p_change <= alpha, p_beyond <= alpha
    unwelcome = tested.goal == "equivalence" or comparison.difference < 0
    decision: Decision = "not enough data to tell"
    if p_preserved <= alpha:
        decision, say = "preserves", _preserves
    elif beyond or (detected and unwelcome):
        decision, say = "changes", _changes
    else:
        say = _unknown
    sentence = say(comparison, tested, p_change, detected, beyond)
    statement = " ".join([sentence, *_reservations(tested, floor, correction)])
    return Verdict(
        decision,
        statement,
        comparison.difference,
        tested,
        p_preserved,
        p_change,
        beyond,
        detected,
    )


def _preserves(
    comparison: Comparison, tested: MarginTest, p_change: float, detected: bool, beyond: bool
) -> str:
    quantity, change = comparison.quantity, comparison.difference
    said = f"preserves {quantity.name} within {quantity.size(tested.margin)} "
    said += f"({_where(comparison, tested)})"
    if not detected:
        return f"The proxy {said}."
    direction = "loss" if change < 0 else "gain"
    how = f"{quantity.test} p = {p_change:.2g}"
    if change > 0 and tested.goal == "noninferiority":
        return f"The proxy {said}, and a gain of {quantity.size(change)} is detected ({how})."
    return (
        f"The proxy {said}, although a {direction} of {quantity.size(change)} is detected ({how}): "
        "it is real, but smaller than the margin."
    )


def _changes(
    comparison: Comparison, tested: MarginTest, p_change: float, detected: bool, beyond: bool
) -> str:
    quantity, change = comparison.quantity, comparison.difference
    direction = "loss" if change < 0 else "gain"
    said = f"The proxy changes {quantity.name}: a {direction} of {quantity.size(change)}"
    if beyond:
        return f"{said}, more than {quantity.size(tested.margin)} ({_where(comparison, tested)})."
    return (
        f"{said} is detected ({quantity.test} p = {p_change:.2g}); whether it is larger than "
        f"{quantity.size(tested.margin)} is open ({_where(comparison, tested)})."
    )


def _unknown(
    comparison: Comparison, tested: MarginTest, p_change: float, detected: bool, beyond: bool
) -> str:
    quantity = comparison.quantity
    if detected:  # a gain, after a correction that leaves no verdict on a loss
        return (
            f"Not enough data to tell: a gain of {quantity.size(comparison.difference)} is "
            f"detected ({quantity.test} p = {p_change:.2g}), but a loss of "
            f"{quantity.size(tested.margin)} is not excluded at this level "
            f"({_where(comparison, tested)})."
        )
    what = "loss" if tested.goal == "noninferiority" else "change"
    return (
        f"Not enough data to tell: {_where(comparison, tested)}, so that neither unchanged "
        f"{quantity.name} nor a {what} of {quantity.size(tested.margin)} is excluded"
        f"{_advice(comparison, tested)}."
    )


def _where(comparison: Comparison, tested: MarginTest) -> str:
    """The change, its bounds, and what they rest on."""
    quantity, bounds = comparison.quantity, tested.bounds
    shown = f"change {quantity.signed(comparison.difference)}, "
    shown += f"{100 * (1 - tested.alpha):g} % lower bound {quantity.signed(bounds.low)}"
    if tested.goal == "equivalence" or comparison.difference < 0:
        shown += f", upper bound {quantity.signed(bounds.high)}"
    return f"{shown}; {comparison.evidence}"


def _advice(comparison: Comparison, tested: MarginTest) -> str:
    """What margin could be tested, and how many images the wanted one needs."""
    if not comparison.spread:
        return ""
    kind: Kind = "tost" if tested.goal == "equivalence" else "noninferiority"
    factor = margin_factor(ADVISED_POWER, kind, tested.alpha)
    least = factor * math.sqrt(comparison.spread / comparison.n)
    needed = math.ceil(factor**2 * comparison.spread / tested.margin**2)
    return (
        f". If nothing changes, {comparison.n:,} images show it in {100 * ADVISED_POWER:g} % of "
        f"cases at a margin of {comparison.quantity.size(least)}; at this margin it takes "
        f"{needed:,}"
    )


def _reservations(tested: MarginTest, floor: Floor | None, correction: str) -> list[str]:
    said = [correction] if correction else []
    if tested.declared == "after":
        said.append("The margin was declared after the data had been seen.")
    if floor is not None:
        said.append(str(floor))
    return said
