"""What a check says in one English sentence: what fails, how badly, how certain that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from probinterp.criticism.multiplicity import Method
from probinterp.criticism.ranking import Ranking, value_axis
from probinterp.criticism.regime import REGIME_REFUSAL

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
        Two-sided p-value; for a vector the smallest adjusted one.
    effect
        Effect size in standard deviations of the replicates; for a vector the one with the
        largest absolute value.
    n_rejected, n_values
        How many values are rejected, and how many there are.
    worst
        Names of the values with the largest effects, at most three; empty for a single number.
    calibrated
        Whether the p-value is uniform under a correct model, as far as is known.
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
    n = result.n_draws if result.refitted is None else len(result.refitted)
    return 2 / (n + 1)


def _refusal(result: PopPCResult, alpha: float) -> str | None:
    """Why there can be no verdict."""
    if result.kind == "realised" and result.check == "pop-pc":
        if result.regime is None:
            return "the regime number of this realised check is unknown; use kind='plugin'"
        if result.regime > REGIME_REFUSAL:
            return (
                f"the regime number {result.regime:.3g} is above 1, so that this realised check is "
                f"power-limited or degenerate; use kind='plugin', or at most "
                f"{result.n_new_in_regime} held-out rows"
            )
    if resolution(result) > alpha:
        count = result.n_draws if result.refitted is None else len(result.refitted)
        source = "draws" if result.refitted is None else "refits"
        return (
            f"{count} {source} cannot give a p-value below {resolution(result):.2g}, and the "
            f"level is {alpha:g}"
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
    side = "above" if z >= 0 else "below"
    certainty = f"two-sided p = {p:.2g}"
    if result.refitted is not None:
        certainty += f" among {len(result.refitted)} refits"
    where = (
        f"its {_data(result)} value {value:.4g} lies {abs(z):.2g} sd {side} the mean of "
        f"{result.n_draws} replicates ({certainty})"
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
    m, rejected = len(ranking), ranking.n_rejected
    refusal = _refusal(result, alpha)
    counted = f"of {m} {noun}s of the {_data(result)} data at a {CONTROLS[method]} of {alpha:g}"
    effects = _largest(ranking)
    n_draws = f"{result.n_draws} replicates"
    decision: Decision = "misfit" if rejected else "no misfit"
    if rejected:
        found = f"{result.discrepancy} shows misfit in {rejected} {counted}"
    else:
        found = f"{result.discrepancy} shows no misfit in any {counted}"
        if refusal is None and m * resolution(result) > alpha:
            refusal = f"{n_draws} are too few to reject single {noun}s among {m}"
    statement = f"{found}; largest effects in sd: {effects} ({n_draws}){_reservation(result)}."
    if refusal is not None:
        decision = "no verdict"
        statement = (
            f"No verdict on {result.discrepancy}: {refusal}; largest effects in sd: {effects}."
        )
    return Verdict(
        decision,
        statement,
        result.discrepancy,
        alpha,
        ranking.p_adjusted.min().item(),
        ranking.z[0].item(),
        n_rejected=rejected if decision == "misfit" else 0,
        n_values=m,
        worst=ranking.labels[:N_NAMED],
        calibrated=result.calibrated,
    )


def _largest(ranking: Ranking) -> str:
    """Names and effect sizes of the worst values; infinite ones are counted, they say little."""
    pairs = zip(ranking.labels, ranking.z.tolist(), strict=True)
    finite = [(name, z) for name, z in pairs if math.isfinite(z)]
    named = [f"{name} {z:+.2g}" for name, z in finite[:N_NAMED]]
    if len(finite) < len(ranking):
        named.append(f"{len(ranking) - len(finite)} infinite (replicates do not vary)")
    return ", ".join(named)
