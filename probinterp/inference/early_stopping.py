"""Early stopping on the held-out loss, with the best weights kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class EarlyStopping(NamedTuple):
    """When to stop: after ``patience`` evaluations without a better held-out loss.

    Parameters
    ----------
    patience
        Number of evaluations without an improvement of at least ``min_delta``.
    every
        Epochs between evaluations.
    min_delta
        Smallest improvement that counts, in nats per observation.
    after
        Share of the planned steps before which the fit neither stops nor remembers a best
        state: annealed quantities are still on their way there.
    """

    patience: int = 10
    every: int = 5
    min_delta: float = 0.0
    after: float = 0.5

    def checked(self) -> EarlyStopping:
        """Return itself, or raise ``ValueError`` where a value makes no sense."""
        for name in ("patience", "every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"EarlyStopping.{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.min_delta < 0:
            raise ValueError(f"EarlyStopping.min_delta must not be negative, got {self.min_delta}.")
        if not 0 <= self.after <= 1:
            raise ValueError(
                f"EarlyStopping.after must be a share of the steps in [0, 1], got {self.after}."
            )
        return self


@dataclass
class BestState:
    """Lowest held-out loss so far and the weights that reached it."""

    loss: float = float("inf")
    epoch: int = -1
    waited: int = 0
    weights: dict[str, Tensor] | None = None

    def update(self, model: nn.Module, loss: float, epoch: int, min_delta: float) -> None:
        """Remember the weights if ``loss`` is an improvement, else count one more wait."""
        if loss < self.loss - min_delta:
            self.loss, self.epoch, self.waited = loss, epoch, 0
            self.weights = snapshot(model)
        else:
            self.waited += 1


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy of all parameters and buffers, on their device."""
    with torch.no_grad():
        return {name: value.clone() for name, value in model.state_dict().items()}
