"""What keeps a p-value from being taken at face value: warnings and notes of a check."""

from __future__ import annotations

from probinterp.criticism.reference import Reference
from probinterp.criticism.result import REGIME_REFUSAL, REGIME_WARNING, Check, Kind
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
    draws: object, kind: Kind, values: StreamedValues, n_new: int, n_obs: int | None
) -> list[Objection]:
    """What makes the p-value of a held-out check non-uniform under a correct model."""
    found: list[Objection] = []
    if kind == "realised" and (values.regime is None or values.regime > REGIME_WARNING):
        found.append((RegimeWarning, _regime_message(values.regime)))
    if getattr(draws, "local", None) == "posterior":
        found.append((LocalDoubleUseWarning, _LOCAL_MESSAGE))
    if getattr(draws, "point_estimate", False):
        if n_obs is None:
            found.append(
                (PointEstimateWarning, _POINT_MESSAGE + "Pass n_obs to judge by how much.")
            )
        elif 10 * n_new > n_obs:
            found.append(
                (
                    HeldoutSizeWarning,
                    f"{_POINT_MESSAGE}Keep n_new <= n_obs / 10; here n_new = {n_new} and "
                    f"n_obs = {n_obs}.",
                )
            )
    return found


def notes_on(
    draws: object, check: Check, values: StreamedValues, reference: Reference
) -> tuple[str, ...]:
    """What is worth recording without a warning."""
    notes = []
    if check == "ppc":
        notes.append("The data were used twice: p is not uniform under a correct model.")
    if getattr(draws, "point_estimate", False):
        notes.append("Global parameters are point estimates.")
    if reference.also_replicates:
        notes.append("A single draw serves as reference and replicates.")
    tied = int((values.replicated == values.heldout).any(0).sum())
    if tied:
        notes.append(
            f"{tied} of {values.replicated[0].numel()} values are tied with replicates: "
            "p_value counts ties as extreme, p_randomised breaks them."
        )
    n_draws, n_values = len(values.replicated), values.replicated[0].numel()
    needed = -(-n_values * 2 * 20 // (n_draws + 1))
    if n_values > 1 and needed > n_values:
        notes.append(
            f"With {n_draws} draws no value of {n_values} can be rejected at a false discovery "
            "rate of .05; rank by z or draw more."
        )
    elif n_values > 1 and needed > 1:
        notes.append(
            f"With {n_draws} draws, {needed} of {n_values} values must be at the smallest p-value "
            "before any is rejected at a false discovery rate of .05; rank by z or draw more."
        )
    return tuple(notes)


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
