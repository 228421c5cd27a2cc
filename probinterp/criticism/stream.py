"""The one loop over draws: replicate, evaluate, keep the discrepancies and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.blocks import (
    BLOCK_VALUES,
    Block,
    SharedLikelihood,
    blocks,
    evaluate_block,
)
from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.reference import Reference
from probinterp.criticism.regime import RegimeNumber
from probinterp.criticism.stopping import SequentialStop


class StreamedValues(NamedTuple):
    """Discrepancies of the compared data and of the replicates, on the CPU."""

    heldout: Tensor  # (S, ...) where d is evaluated at each draw, else (1, ...)
    replicated: Tensor  # (S, ...)
    uniform: Tensor  # (...), breaks ties
    decided: bool | None  # whether a sequential stop was certain of all decisions


class Streamed(NamedTuple):
    """What one pass over the draws gives."""

    values: dict[str, StreamedValues]
    regime: float | None


def stream(
    reference: Reference,
    x: Tensor,
    suite: Mapping[str, Discrepancy],
    *,
    tie_seed: int,
    regime: RegimeNumber | None = None,
    stop: SequentialStop | None = None,
) -> Streamed:
    """Evaluate discrepancies of ``x`` and of one replicate per draw, all in one pass.

    Parameters
    ----------
    reference
        Where the discrepancies are evaluated, and the draws that replicate.
    x
        The compared data, shape (N, G), or (N, ...) where a unit is an array.
    suite
        Pure functions ``(x, draw) -> Tensor`` by name.
    tie_seed
        Seed of the uniform numbers that break ties, the same for every discrepancy.
    regime
        Accumulator that is shown the likelihood of ``x`` under each draw, or None.
    stop
        When to stop drawing, or None for all draws.

    Raises
    ------
    TypeError, ValueError
        If a draw, a replicate or a discrepancy is not what it should be.
    """
    columns = {name: _Column(name, d, tie_seed) for name, d in suite.items()}
    totals, n_draws = _Rows(), 0
    look = math.inf if stop is None else stop.first_look
    longest = BLOCK_VALUES if stop is None else stop.first_look
    for block in blocks(reference, x, longest):
        at = SharedLikelihood(block.draw if reference.draw is None else reference.draw)
        for column in columns.values():
            column.evaluate(x, block, at, again=reference.draw is None)
        totals.extend(block.stacked.flatten(1).sum(1))
        if regime is not None:
            regime.update(at.likelihood(x))  # of this very draw: only realised checks ask
        n_draws += len(block.rows)
        if stop is not None and n_draws >= look:
            if all(column.decided(stop) for column in columns.values()):
                break
            look = stop.next_look(n_draws)
        del block, at  # one replicate at a time: the next one is made after this one is gone
    if n_draws == 0:
        raise ValueError(
            "draws is empty, or all of them were set aside: there is nothing to replicate from."
        )
    # One look at the end: on a GPU, a look per draw would wait for the device each time.
    _require_numbers(totals.stacked(), "replicate() returned NaN in draw {}.")
    values = {name: column.finish(stop) for name, column in columns.items()}
    return Streamed(values, None if regime is None else regime.value())


class _Column:
    """One discrepancy: its values so far."""

    def __init__(self, name: str, discrepancy: Discrepancy, tie_seed: int) -> None:
        self.name, self.discrepancy, self.tie_seed = name, discrepancy, tie_seed
        self.heldout, self.replicated = _Rows(), _Rows()

    def evaluate(self, x: Tensor, block: Block, at: PredictiveDraw, *, again: bool) -> None:
        """Add the values of a block of replicates, and that of ``x`` if it is wanted again."""
        if again or len(self.heldout) == 0:
            self.heldout.extend(self._evaluated(block.compared(x), at))
        self.replicated.extend(self._evaluated(block, at))

    def _evaluated(self, block: Block, at: PredictiveDraw) -> Tensor:
        values = evaluate_block(self.discrepancy, block, at)
        _require_value(values[0], self.heldout)
        return values

    @cached_property
    def uniform(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.tie_seed)
        shape = self.replicated.stacked().shape[1:]
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def decided(self, stop: SequentialStop) -> bool:
        """Whether the decisions on all values are certain."""
        replicated, heldout = self.replicated.stacked(), self.heldout.stacked()
        above = (replicated > heldout).sum(0).cpu()
        tied = (replicated == heldout).sum(0).cpu()
        return bool(stop.decided(above + self.uniform * tied, len(replicated)).all())

    def finish(self, stop: SequentialStop | None) -> StreamedValues:
        """Values on the CPU."""
        decided = None if stop is None else self.decided(stop)
        of_data = f"{self.name}: the discrepancy of the data is NaN (draw {{}})."
        of_replicate = f"{self.name}: the discrepancy of replicate {{}} is NaN."
        return StreamedValues(
            _require_numbers(self.heldout.stacked(), of_data),
            _require_numbers(self.replicated.stacked(), of_replicate),
            self.uniform,
            decided,
        )


class _Rows:
    """Values of equal shape, copied into one buffer that doubles when it is full.

    A list of small tensors would fragment the heap: each is carved out of the space that a
    replicate left behind, so that the next replicate needs new space (693 MiB instead of 20 for
    200 draws of 500 x 1000).
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: Tensor) -> None:
        length = self._length + len(values)
        if self._buffer is None:
            self._buffer = torch.empty_like(values)
        while length > len(self._buffer):
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)])
        self._buffer[self._length : length] = values
        self._length = length

    def stacked(self) -> Tensor:
        assert self._buffer is not None
        return self._buffer[: self._length]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block.

    The seed comes from a hash of the user's, so that replicates do not repeat the random numbers
    of data that were simulated under the same seed.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def _require_value(value: Tensor, previous: _Rows) -> None:
    if value.ndim > 1 or value.numel() == 0:
        raise ValueError(
            "the discrepancy must return a scalar or one value per feature or unit, "
            f"got shape {tuple(value.shape)}."
        )
    if len(previous) == 0:
        return
    first = previous.stacked()
    if value.shape != first.shape[1:]:
        raise ValueError(
            f"the discrepancy changed shape: first {tuple(first.shape[1:])}, "
            f"then {tuple(value.shape)}."
        )
    if value.dtype != first.dtype:  # one of them would be rounded
        raise TypeError(f"the discrepancy changed dtype: first {first.dtype}, then {value.dtype}.")


def _require_numbers(values: Tensor, message: str) -> Tensor:
    values = values.cpu().clone()  # the buffer is longer
    bad = values.isnan().reshape(len(values), -1).any(1)
    if bad.any():
        raise ValueError(message.format(int(bad.nonzero()[0])))
    return values
