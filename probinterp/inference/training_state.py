"""The whole state of a fit, so that an interrupted one goes on bit for bit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from probinterp.inference.early_stopping import BestState
from probinterp.inference.history import EpochRecord
from probinterp.inference.storage import read_tensors, write_tensors
from probinterp.models.base import ProbabilisticModel


class Checkpoint:
    """Where and how often the state of training is written.

    Parameters
    ----------
    path
        File to write; if it exists when a fit starts, the fit goes on from it.
    every_minutes
        Least time between two writes; 0 writes after every step.
    """

    def __init__(self, path: str | Path, every_minutes: float = 10.0) -> None:
        if every_minutes < 0:
            raise ValueError(f"every_minutes must not be negative, got {every_minutes}.")
        self.path, self.every_minutes = Path(path), every_minutes
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._last >= 60 * self.every_minutes

    def restart_clock(self) -> None:
        """Note that the state was written now."""
        self._last = time.monotonic()


@dataclass
class TrainingState:
    """What changes during a fit: weights, optimiser, random state, position and records."""

    model: ProbabilisticModel
    optimizer: Optimizer
    seed: int
    settings: dict[str, Any]
    epoch: int = 0
    position: int = 0  # minibatches of the present epoch that are done
    seconds: float = 0.0
    stopped: str = ""
    records: list[EpochRecord] = field(default_factory=list)
    best: BestState = field(default_factory=BestState)
    loss_sum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self.loss_sum = torch.zeros((), device=device)

    def close_epoch(self, record: EpochRecord) -> None:
        """Append the record of the present epoch and turn to the next."""
        self.records.append(record)
        self.epoch, self.position, self.seconds = self.epoch + 1, 0, 0.0
        self.loss_sum.zero_()

    def write(self, checkpoint: Checkpoint) -> None:
        """Write everything to one file, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in (self.best.weights or {}).items()}
        saved, groups = _flatten(self.optimizer)
        tensors |= saved | _random_state(self.loss_sum.device) | {"loss_sum": self.loss_sum}
        meta = {
            "model": self.model.configuration,
            "seed": self.seed,
            "settings": self.settings,
            "epoch": self.epoch,
            "position": self.position,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "records": self.records,
            "best": [self.best.loss, self.best.epoch, self.best.waited],
            "groups": groups,
        }
        write_tensors(checkpoint.path, tensors, meta)
        checkpoint.restart_clock()

    def read(self, checkpoint: Checkpoint) -> None:
        """Restore what :meth:`write` wrote.

        Raises
        ------
        ValueError
            If the file is damaged or belongs to another model, data set or set of options.
        """
        tensors, meta = read_tensors(checkpoint.path)
        mine = {"model": self.model.configuration, "seed": self.seed, "settings": self.settings}
        for name, value in mine.items():
            if meta[name] != value:
                raise ValueError(
                    f"{checkpoint.path} belongs to another fit: its {name} is {meta[name]}, "
                    f"expected {value}."
                )
        device = self.loss_sum.device
        self.model.load_state_dict(_part(tensors, "model."))
        _unflatten(self.optimizer, tensors, meta["groups"])
        _set_random_state(tensors, device)
        self.loss_sum.copy_(tensors["loss_sum"])
        for name in ("epoch", "position", "seconds", "stopped"):
            setattr(self, name, meta[name])
        self.records = [EpochRecord(*values) for values in meta["records"]]
        weights = {name: value.to(device) for name, value in _part(tensors, "best.").items()}
        loss, epoch, waited = meta["best"]
        self.best = BestState(loss, epoch, waited, weights or None)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors and plain numbers of an optimiser whose state is made of tensors."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def _unflatten(
    optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
