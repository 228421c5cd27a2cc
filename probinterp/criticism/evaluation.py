"""One pass over the draws, the refits that calibrate it, and the results made of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw, self_describing
from probinterp.criticism.reference import Reference, ReferenceArgument, find_reference
from probinterp.criticism.refits import Refits, refitted_excess
from probinterp.criticism.regime import RegimeNumber
from probinterp.criticism.reservations import Objection, notes_on, objections_to
from probinterp.criticism.result import Check, Kind, PopPCResult
from probinterp.criticism.stopping import SequentialStop
from probinterp.criticism.stream import Streamed, seeded, stream
from probinterp.criticism.validation import fitted_size, local_mode, validate


class Plan(NamedTuple):
    """How to check."""

    check: Check
    kind: Kind
    reference: ReferenceArgument
    n_reference: int
    seed: int
    n_obs: int | None
    stop: SequentialStop | None


class Calibration(NamedTuple):
    """How to calibrate by refits, if at all."""

    n_refits: int = 0
    refits: Refits | None = None
    n_jobs: int | None = None


def evaluate(
    draws: Iterable[PredictiveDraw],
    x: Tensor,
    suite: Mapping[str, Discrepancy],
    plan: Plan,
    calibration: Calibration,
) -> tuple[dict[str, PopPCResult], list[Objection]]:
    """Results by name, and what keeps their p-values from being uniform."""
    validate(draws, x, suite, plan, calibration)
    draws = self_describing(draws)
    local, n_obs = local_mode(draws), fitted_size(draws, plan.n_obs)
    found, streamed = _stream(draws, x, suite, plan)
    if calibration.n_refits:
        _excess(streamed)  # refuses now what could not be compared with refits
    refitted = _refitted(suite, plan, calibration)
    objections: list[Objection] = []
    if plan.check == "pop-pc":
        objections = objections_to(
            draws, plan.kind, streamed.regime, len(x), n_obs, refitted=calibration.n_refits > 0
        )
    results = {}
    for name, values in streamed.values.items():
        again = refitted.get(name)
        results[name] = PopPCResult(
            check=plan.check,
            discrepancy=name,
            kind=plan.kind,
            heldout=values.heldout,
            replicated=values.replicated,
            uniform=values.uniform,
            n_new=x.shape[0],
            n_features=x[0].numel(),
            n_obs=n_obs,
            seed=plan.seed,
            reference=found.source,
            local=local,
            regime=streamed.regime,
            calibrated=plan.check == "pop-pc" and not objections and not found.also_replicates,
            notes=tuple(text for _, text in objections)
            + notes_on(draws, plan.check, found, values, again),
            axis=getattr(suite[name], "axis", None),
            labels=getattr(suite[name], "labels", None),
            refitted=again,
            n_effective=getattr(draws, "n_effective", None),
        )
    return results, objections


def _stream(
    draws: Iterable[PredictiveDraw], x: Tensor, suite: Mapping[str, Discrepancy], plan: Plan
) -> tuple[Reference, Streamed]:
    tie_seed, draw_seed = np.random.SeedSequence(plan.seed).generate_state(2, np.uint64).tolist()
    realised = plan.kind == "realised" and plan.check == "pop-pc"
    regime = RegimeNumber(x.numel()) if realised else None
    with torch.no_grad(), seeded(draw_seed, x.device):
        found = find_reference(draws, plan.kind, plan.reference, plan.n_reference)
        return found, stream(found, x, suite, tie_seed=tie_seed, regime=regime, stop=plan.stop)


def _refitted(
    suite: Mapping[str, Discrepancy], plan: Plan, calibration: Calibration
) -> Mapping[str, Tensor]:
    if calibration.n_refits == 0:
        return {}
    assert calibration.refits is not None
    return refitted_excess(
        calibration.refits,
        _Excess(dict(suite), plan._replace(reference=None)),
        calibration.n_refits,
        seed=plan.seed,
        n_jobs=calibration.n_jobs,
    )


@dataclass(frozen=True)
class _Excess:
    """Excess discrepancies of one refit; a class so that processes can be sent it."""

    suite: dict[str, Discrepancy]
    plan: Plan

    def __call__(
        self, draws: Iterable[PredictiveDraw], x: Tensor, seed: int
    ) -> Mapping[str, Tensor]:
        return _excess(_stream(draws, x, self.suite, self.plan._replace(seed=seed))[1])


def _excess(streamed: Streamed) -> dict[str, Tensor]:
    found = {
        name: values.heldout.double().mean(0) - values.replicated.double().mean(0)
        for name, values in streamed.values.items()
    }
    for name, excess in found.items():
        if excess.isnan().any():
            raise ValueError(
                f"{name} is infinite for the data and for replicates, so that data and refits "
                "cannot be compared."
            )
    return found
