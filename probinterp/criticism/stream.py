"""The one loop over draws: replicate, evaluate, keep the discrepancies and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy
from probinterp.criticism.reference import Reference, require_draw
from probinterp.criticism.regime import RegimeNumber


class StreamedValues(NamedTuple):
    """Discrepancies of the compared data and of the replicates, on the CPU."""

    heldout: Tensor  # (S, ...) where d is evaluated at each draw, else (1, ...)
    replicated: Tensor  # (S, ...)
    regime: float | None


def stream(
    reference: Reference, x: Tensor, discrepancy: Discrepancy, regime: RegimeNumber | None
) -> StreamedValues:
    """Evaluate the discrepancy of ``x`` and of one replicate per draw.

    Parameters
    ----------
    reference
        Where the discrepancy is evaluated, and the draws that replicate.
    x
        The compared data, shape (N, G).
    discrepancy
        Pure function ``(x, draw) -> Tensor``.
    regime
        Accumulator that is shown the likelihood of ``x`` under each draw, or None.

    Raises
    ------
    TypeError, ValueError
        If a draw, a replicate or a discrepancy is not what it should be.
    """
    heldout, replicated, totals = _Rows(), _Rows(), _Rows()
    for index, draw in enumerate(reference.replicating):
        require_draw(draw, f"draw {index}")
        at = draw if reference.draw is None else reference.draw
        x_rep = draw.replicate()
        _require_like(x_rep, x, index)
        if len(heldout) == 0 or reference.draw is None:
            heldout.append(_require_value(discrepancy(x, at), heldout))
        replicated.append(_require_value(discrepancy(x_rep, at), heldout))
        totals.append(x_rep.sum())
        if regime is not None:
            regime.update(draw.likelihood(x))
    if len(replicated) == 0:
        raise ValueError("draws is empty: there is nothing to replicate from.")
    # One look at the end: on a GPU, a look per draw would wait for the device each time.
    _require_numbers(totals.stacked(), "replicate() returned NaN in draw {}.")
    return StreamedValues(
        _require_numbers(heldout.stacked(), "the discrepancy of the data is NaN (draw {})."),
        _require_numbers(replicated.stacked(), "the discrepancy of replicate {} is NaN."),
        None if regime is None else regime.value(),
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

    def append(self, value: Tensor) -> None:
        if self._buffer is None:
            self._buffer = value.new_empty((1, *value.shape))
        elif self._length == len(self._buffer):
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)])
        self._buffer[self._length] = value
        self._length += 1

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


def _require_like(x_rep: object, x: Tensor, index: int) -> None:
    if not isinstance(x_rep, Tensor):
        raise TypeError(
            f"replicate() must return a torch.Tensor, got {type(x_rep).__name__} in draw {index}."
        )
    if x_rep.shape != x.shape:
        raise ValueError(
            f"replicate() must return the shape of the data, {tuple(x.shape)}, "
            f"got {tuple(x_rep.shape)} in draw {index}."
        )
    if x_rep.device != x.device:
        raise ValueError(
            f"replicate() must return data on {x.device}, got {x_rep.device} in draw {index}."
        )


def _require_value(value: object, previous: _Rows) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"the discrepancy must return a torch.Tensor, got {type(value).__name__}.")
    if value.ndim > 1 or value.numel() == 0:
        raise ValueError(
            "the discrepancy must return a scalar or one value per feature or unit, "
            f"got shape {tuple(value.shape)}."
        )
    if len(previous) and value.shape != previous.stacked().shape[1:]:
        raise ValueError(
            f"the discrepancy changed shape: first {tuple(previous.stacked().shape[1:])}, "
            f"then {tuple(value.shape)}."
        )
    return value


def _require_numbers(values: Tensor, message: str) -> Tensor:
    values = values.cpu().clone()  # the buffer is longer
    bad = values.isnan().reshape(len(values), -1).any(1)
    if bad.any():
        raise ValueError(message.format(int(bad.nonzero()[0])))
    return values
