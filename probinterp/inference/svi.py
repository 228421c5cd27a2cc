"""Stochastic variational inference with torch optimisers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.optim import Optimizer
from tqdm.auto import tqdm

from probinterp.inference.data import Data, minibatch_order, to_device
from probinterp.inference.early_stopping import EarlyStopping
from probinterp.inference.elbo import heldout_loss, negative_bound
from probinterp.inference.finite import FiniteGuard
from probinterp.inference.history import EpochRecord, FitHistory
from probinterp.inference.training_state import Checkpoint, TrainingState
from probinterp.models.base import AnyBatch, ProbabilisticModel

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
Schedule = Callable[[float], float]
INITIAL_BATCH = 4096  # observations that starting values are computed from


def constant(progress: float) -> float:
    """Learning-rate schedule that changes nothing."""
    return 1.0


def cosine(progress: float) -> float:
    """Learning-rate schedule that falls from 1 to 0 along half a cosine wave."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def late_cosine(progress: float) -> float:
    """Learning-rate schedule that is 1 for the first half, then falls to 0 like a cosine."""
    return 1.0 if progress < 0.5 else cosine(2 * progress - 1)


def late_linear(progress: float) -> float:
    """Learning-rate schedule that is 1 for the first four fifths, then falls to 0 on a line."""
    return min(1.0, 5 * (1 - progress))


def fit(
    model: ProbabilisticModel,
    data: Data,
    *,
    max_epochs: int = 200,
    batch_size: int = 512,
    optimizer: MakeOptimizer | None = None,
    schedule: Schedule = constant,
    elbo: Trace_ELBO | None = None,
    heldout: Data | None = None,
    early_stopping: EarlyStopping | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpoint: Checkpoint | str | Path | None = None,
    progress: bool = True,
) -> FitHistory:
    r"""Fit a model in place by stochastic variational inference.

    Maximises the evidence lower bound over minibatches,

    .. math:: \frac{N}{B} \sum_{i \in B} E_q[\log p(x_i, z_i) - \log q(z_i)]
              + \log p(W) - \log q(W),

    with one optimiser step a minibatch. Pyro's parameter store is not used.

    Parameters
    ----------
    model
        Model to fit; it is moved to ``device`` and back again afterwards. One that was fitted
        before goes on from where it is.
    data
        Anything with ``len(data)`` and ``data.batch(index)``.
    max_epochs
        Passes over the data; also the length that annealing refers to.
    batch_size
        Observations a step, B.
    optimizer
        Function of the parameters that makes a torch optimiser; default Adam with a learning
        rate of 0.005, fused.
    schedule
        Factor on the learning rate as a function of progress in [0, 1]; see :func:`cosine`.
    elbo
        A Pyro ELBO; by default the closed form that the model has
        (:meth:`ProbabilisticModel.exact_elbo`), else :class:`MeanFieldELBO`, whose KL divergences
        are in closed form.
    heldout
        Data whose loss is evaluated every ``early_stopping.every`` epochs (default 5).
    early_stopping
        When to stop; the best weights are restored. Needs ``heldout``.
    max_grad_norm
        Gradients are clipped to this norm.
    seed
        Seed of data order and sampling; same seed, same bits on one CPU thread count.
    device
        ``"auto"`` (CUDA where there is one, else the CPU) or a torch device.
    precision
        ``"bf16"`` runs the networks under autocast; parameters and densities stay float32.
    checkpoint
        File (or :class:`Checkpoint`) to which the whole state of training is written every few
        minutes, and from which an interrupted fit goes on, with the same result bit for bit.
    progress
        Show a progress bar with the remaining time.

    Returns
    -------
    FitHistory
        Losses per epoch and why the fit ended. Ctrl-C ends it too and keeps what was learned.

    Raises
    ------
    ValueError
        If the data are empty or an option makes no sense.
    NonFiniteError
        If a loss or gradient is NaN or infinite; it names the site and the model keeps
        its last good weights.
    """
    rule = (early_stopping or EarlyStopping()).checked()
    _require(max_epochs, batch_size, max_grad_norm, precision, data, heldout, early_stopping)
    place = resolve_device(device)
    home = next(model.parameters()).device
    settings = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "max_grad_norm": max_grad_norm,
        "precision": precision,
        "n_obs": len(data),
        "device": place.type,
        "early_stopping": rule._asdict() if early_stopping else None,
        "torch": str(torch.__version__),
    }
    saved = Checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    with torch.random.fork_rng(_cuda_devices(place)), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        model.to(place).train()
        try:
            state = _start(model, data, optimizer or _adam, saved, place, seed, settings)
            step = _Step(
                model,
                state.optimizer,
                elbo,
                schedule,
                FiniteGuard(model, place),
                _autocast(place, precision),
                len(data),
                max_grad_norm,
            )
            loop = _Loop(step, state, data, heldout, rule, saved, place)
            state.stopped = state.stopped or loop.run(max_epochs, batch_size, progress)
            if early_stopping and state.best.weights is not None:
                model.load_state_dict(state.best.weights)
        finally:
            model.anneal(1.0)
            model.to(home).eval()
    best = state.best.epoch if early_stopping and state.best.weights else len(state.records) - 1
    return FitHistory(tuple(state.records), state.stopped, best, seed, settings)


@dataclass
class _Step:
    """One optimiser step on one minibatch."""

    model: ProbabilisticModel
    optimizer: Optimizer
    elbo: Trace_ELBO | None
    schedule: Schedule
    guard: FiniteGuard
    autocast: AbstractContextManager[Any]
    n_total: int
    max_grad_norm: float | None

    def __call__(self, batch: AnyBatch, progress: float) -> Tensor:
        """Take the step; return the loss per observation, still on the device."""
        model = self.model
        model.anneal(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(progress)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = negative_bound(model, batch, self.n_total, self.elbo)
        loss = loss / self.n_total
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.max_grad_norm, norm)
        self.guard.watch(loss, norm, batch)
        self.optimizer.step()
        model.after_step(progress)
        return loss.detach()


@dataclass
class _Loop:
    """Epochs, evaluations and checkpoints around the steps."""

    step: _Step
    state: TrainingState
    data: Data
    heldout: Data | None
    rule: EarlyStopping
    saved: Checkpoint | None
    place: torch.device

    def run(self, max_epochs: int, batch_size: int, progress: bool) -> str:
        """Train until the end; return the reason for it."""
        state, depth = self.state, len(_PYRO_STACK)
        bar = tqdm(
            total=max_epochs, initial=state.epoch, unit="epoch", disable=not progress, leave=False
        )
        try:
            with bar:
                while state.epoch < max_epochs:
                    self.epoch(max_epochs, batch_size)
                    bar.set_postfix(_numbers(state.records[-1]), refresh=False)
                    bar.update()
                    if state.best.waited >= self.rule.patience and self.stops:
                        return self.finish("early_stopping")
        except KeyboardInterrupt:
            del _PYRO_STACK[depth:]  # Ctrl-C may leave a handler there
            return "interrupted"
        return self.finish("max_epochs")

    @property
    def stops(self) -> bool:
        return self.state.settings["early_stopping"] is not None

    def finish(self, reason: str) -> str:
        self.state.stopped = reason
        if self.saved:
            self.state.write(self.saved)
        return reason

    def epoch(self, max_epochs: int, batch_size: int) -> None:
        """One pass over the data, from where the state says it is."""
        state, n = self.state, len(self.data)
        order = minibatch_order(
            n,
            batch_size,
            seed=state.seed,
            epoch=state.epoch,
            block_size=getattr(self.data, "block_size", 1),
        )
        planned = max_epochs * len(order)
        started = time.perf_counter()
        batch = None
        for index in order[state.position :]:
            done = (state.epoch * len(order) + state.position) / planned
            batch = to_device(self.data.batch(index), self.place)
            state.loss_sum += self.step(batch, done) * len(index)
            state.position += 1
            if self.saved and self.saved.due():
                state.seconds += time.perf_counter() - started
                started = time.perf_counter()
                state.write(self.saved)
        if batch is not None:
            self.step.guard.check(batch)
        state.seconds += time.perf_counter() - started
        self.evaluate(max_epochs, batch_size)

    def evaluate(self, max_epochs: int, batch_size: int) -> None:
        """Close the epoch: held-out loss, best weights, record."""
        state, evaluated = self.state, None
        last = state.epoch + 1 == max_epochs
        if self.heldout is not None and (last or (state.epoch + 1) % self.rule.every == 0):
            model = self.step.model
            with self.step.autocast:
                evaluated = heldout_loss(model, self.heldout, batch_size, self.place, state.seed)
            if state.epoch + 1 >= self.rule.after * max_epochs:
                state.best.update(model, evaluated, state.epoch, self.rule.min_delta)
        rate = self.step.optimizer.param_groups[0]["lr"]
        loss = float(state.loss_sum) / len(self.data)
        record = EpochRecord(state.epoch, loss, evaluated, float(rate), state.seconds)
        state.close_epoch(record)


def _start(
    model: ProbabilisticModel,
    data: Data,
    make_optimizer: MakeOptimizer,
    saved: Checkpoint | None,
    place: torch.device,
    seed: int,
    settings: dict[str, Any],
) -> TrainingState:
    """Fresh state with the model initialised from data, or the state of a checkpoint."""
    optimizer = make_optimizer(model.parameters())
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    state = TrainingState(model, optimizer, seed, settings)
    if saved and saved.path.exists():
        state.read(saved)
        return state
    if model.initialized:
        return state
    n_first = min(len(data), INITIAL_BATCH)
    index = minibatch_order(len(data), n_first, seed=seed, epoch=-1)[0].sort().values
    model.initialize(to_device(data.batch(index), place), len(data))
    model.initialized.fill_(True)
    return state


def _adam(parameters: Iterable[Tensor]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3, fused=True)


def resolve_device(device: str | torch.device) -> torch.device:
    """Torch device for ``device``; ``"auto"`` is CUDA where there is one, else the CPU."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:0, got {device!r}.") from error
    if place.type == "meta":
        raise ValueError("device 'meta' holds no numbers: nothing can be fitted there.")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(place)!r} was asked for, but torch sees no CUDA device.")
    return place


def _autocast(place: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(place.type, dtype=torch.bfloat16)


def _cuda_devices(place: torch.device) -> list[int]:
    return [place.index or torch.cuda.current_device()] if place.type == "cuda" else []


def _numbers(record: EpochRecord) -> dict[str, str]:
    shown = {"loss": f"{record.loss:.3f}"}
    return (
        shown if record.heldout_loss is None else shown | {"held-out": f"{record.heldout_loss:.3f}"}
    )


def _require(
    max_epochs: int,
    batch_size: int,
    max_grad_norm: float | None,
    precision: str,
    data: Data,
    heldout: Data | None,
    early_stopping: EarlyStopping | None,
) -> None:
    for name, value in {"max_epochs": max_epochs, "batch_size": batch_size}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be positive or None, got {max_grad_norm}.")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f'precision must be "fp32" or "bf16", got {precision!r}.')
    if not isinstance(data, Data):
        raise TypeError(f"data must have len() and batch(index), got {type(data).__name__}.")
    if len(data) == 0 or (heldout is not None and len(heldout) == 0):
        raise ValueError("data and heldout must hold at least one observation, got none.")
    if early_stopping is not None and heldout is None:
        raise ValueError("early_stopping needs heldout data, got None.")
