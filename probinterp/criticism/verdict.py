"""What a check says in one English sentence: what fails, how badly, how certain that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from probinterp.criticism.multiplicity import Method
from probinterp.criticism.ranking import Ranking, value_axis
from probinterp.criticism.regime import REGIME_REFUSAL
from probinterp.criticism.wording import counted, plural, position

if TYPE_CHECKING:
    from probinterp.criticism.result import PopPCResult

Decision = Literal["misfit", "no misfit", "no verdict"]

N_NAMED = 3  # values that a sentence names
CONTROLS = {"bh": "false discovery rate", "holm": "family-wise error"}


@dataclass(frozen=True)
class Verdict:
    """What a check found; ``str(verdict)`` is the sentence.

    Parameters
    ----------
    decision
        ``"misfit"``, ``"no misfit"``, or ``"no verdict"`` where the check cannot tell.
    statement
        One English sentence.
    discrepancy
        Name of the discrepancy.
    alpha
        Level of the test, or of the adjusted p-values of a vector.
    p_value
        Two-sided p-value; for a vector the smallest adjusted one, or that of all values together.
    effect
        Effect size in standard deviations of the replicates; for a vector the one with the
        largest absolute value.
    n_rejected, n_values
        How many values are rejected, and how many there are.
    worst
        Names of the values with the largest effects, at most three; empty for a single number.
    calibrated
        Whether the p-value is uniform under a correct model, as far as is known.
    joint
        Whether the values of a vector were judged together, because there are too few draws to
        judge them one by one. There is no verdict then where together they show no misfit, but one
        alone lies outside all its replicates and too far off for a normal law of them.
    """

    decision: Decision
    statement: str
    discrepancy: str
    alpha: float
    p_value: float
    effect: float
    n_rejected: int
    n_values: int
    worst: tuple[str, ...]
    calibrated: bool
    joint: bool = False

    def __str__(self) -> str:
        return self.statement

    @property
    def passed(self) -> bool | None:
        """True without misfit, False with it, None without a verdict."""
        return {"misfit": False, "no misfit": True, "no verdict": None}[self.decision]


def find_verdict(
    result: PopPCResult,
    alpha: float,
    labels: Sequence[str] | None,
    method: Method,
    noun: str | None,
) -> Verdict:
    """Verdict on a result; see :meth:`PopPCResult.verdict`."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}.")
    if result.uniform.ndim == 0:
        return _overall(result, alpha)
    ranking = result.ranking(labels, method=method, alpha=alpha)
    return _each(result, alpha, ranking, method, noun or value_axis(result))


def resolution(result: PopPCResult) -> float:
    """Smallest two-sided p-value that the draws, or the refits, can give."""
    if result.decided_by == "refit t":
        return 0.0
    return 2 / (_compared(result)[0] + 1)


def _compared(result: PopPCResult) -> tuple[int, str]:
    """How many values the data are ranked among, and what gave them."""
    if result.refitted is None:
        return result.n_draws, "draw"
    return len(result.refitted), "refit"


def _refusal(result: PopPCResult, alpha: float) -> str | None:
    """Why there can be no verdict."""
    if result.kind == "realised" and result.check == "pop-pc":
        if result.regime is None:
            return "the regime number of this realised check is unknown; use kind='plugin'"
        if result.regime > REGIME_REFUSAL:
            n_new = result.n_new_in_regime
            return (
                f"the regime number {result.regime:.3g} is above 1, so that this realised check is "
                f"power-limited or degenerate; use kind='plugin'"
                + (f", or at most {counted(n_new, 'held-out row')}" if n_new else "")
            )
    if resolution(result) > alpha:
        return (
            f"{counted(*_compared(result))} cannot give a p-value below {resolution(result):.2g}, "
            f"and the level is {alpha:g}"
        )
    return None


def _reservation(result: PopPCResult) -> str:
    return "" if result.calibrated else "; the p-value is not calibrated"


def _data(result: PopPCResult) -> str:
    return "held-out" if result.check == "pop-pc" else "fitted"


def _overall(result: PopPCResult, alpha: float) -> Verdict:
    p, z = result.p_decision.item(), result.z.item()
    value = result.heldout.double().mean().item()
    refusal = _refusal(result, alpha)
    certainty = f"two-sided p = {p:.2g}"
    if result.refitted is not None:
        certainty += f" among {len(result.refitted)} refits"
    where = (
        f"its {_data(result)} value {value:.4g} lies {position(z)} the mean of "
        f"{counted(result.n_draws, 'replicate')} ({certainty})"
    )
    decision: Decision = "misfit" if p <= alpha else "no misfit"
    statement = f"{result.discrepancy} shows {decision}: {where}{_reservation(result)}."
    if refusal is not None:
        decision, statement = "no verdict", f"No verdict on {result.discrepancy}: {refusal}."
    return Verdict(
        decision,
        statement,
        result.discrepancy,
        alpha,
        p,
        z,
        n_rejected=int(decision == "misfit"),
        n_values=1,
        worst=(),
        calibrated=result.calibrated,
    )


def _each(
    result: PopPCResult, alpha: float, ranking: Ranking, method: Method, noun: str
) -> Verdict:
    refusal, joint = _refusal(result, alpha), None
    if refusal is None and not ranking.n_rejected:
        if len(ranking) * resolution(result) > alpha:
            joint = _joint_p(result, alpha)
            if joint is None:
                refusal = _too_few(result, ranking, noun)
            elif joint > alpha:
                refusal = _suspicion(result, alpha, joint, ranking, noun)
    effects = f"largest effects in sd: {_largest(ranking)}"
    fails = ranking.n_rejected > 0 if joint is None else joint <= alpha
    decision: Decision = "misfit" if fails else "no misfit"
    if refusal is not None:
        decision = "no verdict"
        reservation = "" if joint is None else _reservation(result)
        statement = f"No verdict on {result.discrepancy}: {refusal}; {effects}{reservation}."
    elif joint is not None:
        statement = _joint_sentence(result, decision, joint, ranking, noun, effects)
    else:
        statement = _sentence(result, decision, alpha, ranking, method, noun, effects)
    return Verdict(
        decision,
        statement,
        result.discrepancy,
        alpha,
        ranking.p_adjusted.min().item() if joint is None else joint,
        ranking.z[0].item(),
        n_rejected=ranking.n_rejected if decision == "misfit" else 0,
        n_values=len(ranking),
        worst=ranking.labels[:N_NAMED],
        calibrated=result.calibrated,
        joint=joint is not None,
    )


def _sentence(
    result: PopPCResult,
    decision: Decision,
    alpha: float,
    ranking: Ranking,
    method: Method,
    noun: str,
    effects: str,
) -> str:
    m, rejected = len(ranking), ranking.n_rejected
    where = f"in {rejected or 'any'} of {m} {plural(noun)}" if m > 1 else f"in the only {noun}"
    certainty = counted(result.n_draws, "replicate")
    if result.refitted is not None:
        certainty += f", {counted(len(result.refitted), 'refit')}"
    return (
        f"{result.discrepancy} shows {decision} {where} of the {_data(result)} data at a "
        f"{CONTROLS[method]} of {alpha:g}; {effects} ({certainty}){_reservation(result)}."
    )


def _joint_p(result: PopPCResult, alpha: float) -> float | None:
    """One p-value for all values, where replicates decide and could reject."""
    decides = result.decided_by == "draws" and len(result.heldout) == 1
    return result.aggregate("ranks") if decides and 1 / (result.n_draws + 1) <= alpha else None


def _joint_sentence(
    result: PopPCResult,
    decision: Decision,
    joint: float,
    ranking: Ranking,
    noun: str,
    effects: str,
) -> str:
    source = counted(*_compared(result))
    limit = (
        f"{source} are too few to say in which"
        if decision == "misfit"
        else (f"{source} are too few to judge single {plural(noun)}")
    )
    return (
        f"{result.discrepancy} shows {decision} in the {len(ranking)} {plural(noun)} of the "
        f"{_data(result)} data taken together (p = {joint:.2g}); {limit}; {effects}"
        f"{_reservation(result)}."
    )


def _suspicion(
    result: PopPCResult, alpha: float, joint: float, ranking: Ranking, noun: str
) -> str | None:
    """Why values without misfit together do not pass: single ones that the draws cannot judge.

    Those are meant that lie outside all their replicates, by an effect that Bonferroni's
    correction would reject under a normal law.
    """
    n_values = len(ranking)
    limit = -NormalDist().inv_cdf(alpha / (2 * n_values))
    far = (ranking.z.abs() >= limit) & (ranking.p <= resolution(result))
    if not far.any():
        return None
    first, n_far = int(far.nonzero()[0]), int(far.sum())
    label, place = ranking.labels[first], position(ranking.z[first].item())
    which = f"{label} lies {place} its replicates"
    if n_far > 1:
        lowest = math.floor(10 * limit) / 10
        which = f"{n_far} {plural(noun)} lie more than {lowest:g} sd from their replicates, "
        which += f"{label} {place},"
    enough = math.ceil(2 * n_values / alpha - 1e-6) - 1
    return (
        f"the {n_values} {plural(noun)} taken together show no misfit (p = {joint:.2g}), but "
        f"{which} and {counted(*_compared(result))} are too few to judge single {plural(noun)} "
        f"({enough:,} would do)"
    )


def _too_few(result: PopPCResult, ranking: Ranking, noun: str) -> str:
    source = counted(*_compared(result))
    return f"{source} are too few to reject single {plural(noun)} among {len(ranking)}"


def _largest(ranking: Ranking) -> str:
    """Names and effect sizes of the worst values; infinite ones are counted, they say little."""
    z, constant = ranking.z, ranking.heldout.isfinite()
    finite = [i for i, shown in enumerate(z.isfinite().tolist()) if shown][:N_NAMED]
    named = [f"{ranking.labels[i]} {z[i].item():+.2g}" for i in finite]
    others = {
        "infinite (replicates do not vary)": z.isinf() & constant,
        "infinite (as in the data)": z.isinf() & ~constant,
        "undefined": z.isnan(),
    }
    named += [f"{int(chosen.sum())} {what}" for what, chosen in others.items() if chosen.any()]
    return ", ".join(named)
