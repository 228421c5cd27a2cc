"""What the checks of several splits say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probinterp.criticism.multiplicity import adjust
from probinterp.criticism.regime import REGIME_REFUSAL
from probinterp.criticism.result import PopPCResult
from probinterp.criticism.verdict import Decision, Verdict
from probinterp.criticism.wording import position


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Values of all splits, shape (K, ...).

    Raises
    ------
    ValueError
        If they differ in shape from split to split.
    """
    if len({value.shape for value in values}) > 1:
        raise ValueError(
            "the discrepancy has different numbers of values in different splits: "
            f"{sorted({value.numel() for value in values})}; look at each split alone."
        )
    return torch.stack(list(values))


def merged_notes(results: Sequence[PopPCResult]) -> tuple[str, ...]:
    """Notes of all results, each once."""
    return tuple(dict.fromkeys(note for result in results for note in result.notes))


@dataclass(frozen=True)
class Finding:
    """What several splits say together; makes the verdict."""

    results: tuple[PopPCResult, ...]
    splits: str  # "folds" or "blocks"
    p: Tensor
    p_name: str
    z: Tensor  # (...) mean effect
    resolution: float

    def verdict(self, alpha: float) -> Verdict:
        """Verdict with one English sentence; vectors are adjusted by Benjamini and Hochberg."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {alpha}.")
        name = self.results[0].discrepancy
        calibrated = all(result.calibrated for result in self.results)
        p = adjust(self.p).reshape(-1)
        n_rejected = int((p <= alpha).sum())
        refusal = self._refusal(alpha, n_rejected)
        n_rejected = 0 if refusal else n_rejected
        decision: Decision = "no verdict" if refusal else "misfit" if n_rejected else "no misfit"
        z = self.z.reshape(-1).abs()
        worst = int(torch.where(z.isnan(), -1.0, z).argmax())
        effect = self.z.reshape(-1)[worst].item()
        statement = f"No verdict on {name}: {refusal}."
        if not refusal:
            statement = f"{name} shows {decision}{self._where(n_rejected, p, worst, alpha)}"
            statement += "." if calibrated else "; the p-value is not calibrated."
        return Verdict(
            decision,
            statement,
            name,
            alpha,
            p.min().item(),
            effect,
            n_rejected,
            len(p),
            () if self.p.ndim == 0 else (self._label(worst),),
            calibrated,
        )

    def _where(self, n_rejected: int, p: Tensor, worst: int, alpha: float) -> str:
        z = self.z.reshape(-1)[worst].item()
        k = len(self.results)
        if self.p.ndim == 0:
            return (
                f" over {k} {self.splits}: the held-out values lie on average {position(z)} the "
                f"replicates ({self.p_name} = {p.item():.2g})"
            )
        number = f"{n_rejected or 'any'} of {len(p)} values" if len(p) > 1 else "the only value"
        return (
            f" in {number} over {k} {self.splits} at a false discovery rate of {alpha:g} "
            f"({self.p_name}); {self._label(worst)} lies on average {position(z)} the replicates"
            + (", the largest effect" if len(p) > 1 else "")
        )

    def _label(self, index: int) -> str:
        result = self.results[0]
        if result.labels is not None:
            return result.labels[index]
        return f"{result.axis or 'value'} {index}"

    def _refusal(self, alpha: float, n_rejected: int) -> str | None:
        regimes = [result.regime for result in self.results if result.kind == "realised"]
        if any(regime is None or regime > REGIME_REFUSAL for regime in regimes):
            return (
                f"the regime number is unknown or above 1 in some {self.splits}, so that this "
                "realised check is power-limited or degenerate; use kind='plugin'"
            )
        if self.resolution > alpha:
            return (
                f"{len(self.results)} {self.splits} of {self.results[0].n_draws} draws cannot "
                f"give a p-value below {self.resolution:.2g}, and the level is {alpha:g}"
            )
        if not n_rejected and self.p.numel() * self.resolution > alpha:
            return (
                f"{len(self.results)} {self.splits} of {self.results[0].n_draws} draws are too "
                f"few to reject single values among {self.p.numel()}"
            )
        return None
