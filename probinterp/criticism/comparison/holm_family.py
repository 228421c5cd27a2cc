"""Several comparisons at once, corrected together under a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from probinterp.criticism.comparison.cells import numbers
from probinterp.criticism.comparison.floor import Floor
from probinterp.criticism.comparison.margins import Declared, Goal, margin_test
from probinterp.criticism.comparison.quantity import Comparison
from probinterp.criticism.comparison.verdict import Verdict, decide
from probinterp.criticism.multiplicity import adjust


class Family(NamedTuple):
    """Verdicts of a named family of comparisons.

    Parameters
    ----------
    name
        Name of the family, for the record.
    correction
        How p-values were corrected within it.
    verdicts
        Verdict by the label of the comparison, from corrected p-values.
    """

    name: str
    correction: str
    verdicts: dict[str, Verdict]


def holm(p: Any) -> torch.Tensor:
    """Holm's adjusted p-values of a vector, float64."""
    return adjust(numbers(p, "p"), "holm")


def family(
    name: str,
    comparisons: Mapping[str, Comparison],
    *,
    margin: float,
    goal: Goal = "noninferiority",
    alpha: float = 0.05,
    declared: Declared = "before",
    floor: Floor | None = None,
) -> Family:
    """Verdicts on several comparisons, such as windows by token types, with Holm's correction.

    Each of the three questions (is the change inside the margin, is there one, is it beyond the
    margin) is a family of its own: the probability of any wrong "preserves" is at most ``alpha``,
    and so is that of any change detected where there is none. Holm's correction holds though the
    comparisons share their images.

    Parameters
    ----------
    name
        Name of the family.
    comparisons
        Comparison by label. Leave out those that cannot change, such as patches replaced in the
        last block: they would only dilute the correction.
    margin, goal, alpha, declared, floor
        As for :func:`verdict`.

    Raises
    ------
    ValueError
        If the family is empty.
    """
    if not comparisons:
        raise ValueError(f"family {name!r} has no comparison.")
    tested = [margin_test(c, goal, margin, alpha, declared) for c in comparisons.values()]
    preserved = holm([t.p_value for t in tested]).tolist()
    changed = holm([c.p_change for c in comparisons.values()]).tolist()
    beyond = holm([_p_beyond(c, margin, goal) for c in comparisons.values()]).tolist()
    said = (
        f"Holm's correction over {len(tested)} comparisons ({name}) is in the p-values and the "
        "verdict, not in the bounds."
    )
    columns: Sequence[Any] = (comparisons.items(), tested, preserved, changed, beyond)
    verdicts = {
        label: decide(c, t, p, q, r, floor=floor, correction=said)
        for (label, c), t, p, q, r in zip(*columns, strict=True)
    }
    return Family(name, "holm", verdicts)


def _p_beyond(comparison: Comparison, margin: float, goal: Goal) -> float:
    p = comparison.p_below(-margin)
    return min(p, comparison.p_above(margin)) if goal == "equivalence" else p
