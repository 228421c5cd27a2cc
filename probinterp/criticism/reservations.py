"""What keeps a p-value from being taken at face value: warnings and notes of a check."""

from __future__ import annotations

from torch import Tensor

from probinterp.criticism.reference import Reference
from probinterp.criticism.regime import REGIME_REFUSAL, REGIME_WARNING
from probinterp.criticism.result import Check, Kind
from probinterp.criticism.stream import StreamedValues
from probinterp.criticism.warnings import (
    CriticismWarning,
    HeldoutSizeWarning,
    LocalDoubleUseWarning,
    PointEstimateWarning,
    RegimeWarning,
)

Objection = tuple[type[CriticismWarning], str]

_LOCAL_MESSAGE = (
    "The replicates' local latents were inferred from the held-out rows themselves: the check "
    "is blind to a wrong prior of the latents and conservative otherwise."
)
_POINT_MESSAGE = (
    "Global parameters are point estimates: the replicates lack their uncertainty, and a correct "
    "model is rejected too often. "
)


def objections_to(
    draws: object,
    kind: Kind,
    regime: float | None,
    n_new: int,
    n_obs: int | None,
    *,
    refitted: bool,
) -> list[Objection]:
    """What makes the p-value of a held-out check non-uniform under a correct model."""
    found: list[Objection] = []
    if kind == "realised" and (regime is None or regime > REGIME_WARNING):
        found.append((RegimeWarning, _regime_message(regime)))
    if getattr(draws, "local", None) == "posterior":
        found.append((LocalDoubleUseWarning, _LOCAL_MESSAGE))
    if getattr(draws, "point_estimate", False) and not refitted:
        if n_obs is None:
            found.append(
                (PointEstimateWarning, _POINT_MESSAGE + "Pass n_obs to judge by how much.")
            )
        elif 10 * n_new > n_obs:
            found.append(
                (
                    HeldoutSizeWarning,
                    f"{_POINT_MESSAGE}Keep n_new <= n_obs / 10 or calibrate by refits; here n_new "
                    f"= {n_new} and n_obs = {n_obs}.",
                )
            )
    return found


def notes_on(
    draws: object, check: Check, reference: Reference, values: StreamedValues, refits: Tensor | None
) -> tuple[str, ...]:
    """What is worth recording without a warning."""
    notes = []
    if check == "ppc":
        notes.append("The data were used twice: p is not uniform under a correct model.")
    if getattr(draws, "point_estimate", False) and refits is None:
        notes.append("Global parameters are point estimates.")
    if refits is not None:
        notes.append(
            f"Calibrated by {len(refits)} refits to data simulated from the fit: p_decision counts "
            "the error of the fit in."
        )
    if reference.also_replicates:
        notes.append("A single draw serves as reference and replicates.")
    if values.decided is not None:
        notes.append(_stop_note(values))
    tied, n_values = int((values.replicated == values.heldout).any(0).sum()), values.uniform.numel()
    if tied:
        which = f"{tied} of {n_values} values {'is' if tied == 1 else 'are'}"
        which = which if n_values > 1 else "The value of the data is"
        notes.append(
            f"{which} tied with replicates: p_value counts ties as extreme, p_randomised breaks "
            "them."
        )
    return tuple(notes) + (() if refits is not None else _resolution_notes(values))


def _stop_note(values: StreamedValues) -> str:
    n_draws = len(values.replicated)
    if values.decided:
        return f"Drawing stopped after {n_draws} replicates: every decision is certain enough."
    return f"After all {n_draws} replicates some decision is not certain enough; draw more."


def _resolution_notes(values: StreamedValues) -> tuple[str, ...]:
    n_draws, n_values = len(values.replicated), values.replicated[0].numel()
    needed = -(-n_values * 2 * 20 // (n_draws + 1))
    if n_values == 1 or needed <= 1:
        return ()
    if needed > n_values:
        return (
            f"With {n_draws} draws no value of {n_values} can be rejected at a false discovery "
            "rate of .05; rank by z or draw more.",
        )
    return (
        f"With {n_draws} draws, {needed} of {n_values} values must be at the smallest p-value "
        "before any is rejected at a false discovery rate of .05; rank by z or draw more.",
    )


def _regime_message(regime: float | None) -> str:
    if regime is None:
        return "The regime number of a realised check needs at least two draws."
    verdict = (
        "the check is power-limited or degenerate"
        if regime > REGIME_REFUSAL
        else "p is biased towards misfit"
    )
    return (
        f"The regime number of this realised check is {regime:.3g} (at most {REGIME_WARNING} "
        f"wanted): {verdict}. Use kind='plugin' or kind='predictive'."
    )
