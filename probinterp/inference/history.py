"""What happened during a fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class EpochRecord(NamedTuple):
    """One epoch of a fit; losses are negative ELBOs per observation, in nats.

    ``loss`` is the average over the epoch's minibatches under the current KL weight and includes
    the global terms; ``heldout_loss`` has the local terms only, at full KL weight, and is None in
    epochs without an evaluation.
    """

    epoch: int
    loss: float
    heldout_loss: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class FitHistory:
    """Record of one call of :func:`probinterp.fit`.

    Attributes
    ----------
    records
        One :class:`EpochRecord` per epoch, in order.
    stopped
        Why the fit ended: ``"max_epochs"``, ``"early_stopping"`` or ``"interrupted"``.
    best_epoch
        Epoch whose weights the model has now.
    seed
        Seed of data order and sampling.
    settings
        Options of the fit and versions, as plain JSON values.
    """

    records: tuple[EpochRecord, ...]
    stopped: str
    best_epoch: int
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per epoch, indexed by ``epoch``."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=EpochRecord._fields).set_index("epoch")

    def __str__(self) -> str:
        if not self.records:
            return f"no epoch finished ({self.stopped})"
        last = self.records[-1]
        heldout = [r.heldout_loss for r in self.records if r.heldout_loss is not None]
        best = f", best held-out loss {min(heldout):.4f}" if heldout else ""
        return (
            f"{len(self.records)} epochs ({self.stopped}), loss {last.loss:.4f}{best}, "
            f"weights of epoch {self.best_epoch}"
        )
