"""Replicates in blocks: one at a time, or a stack where the draws have them stacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.reference import Reference, require_draw

BLOCK_VALUES = 2**20  # entries of a stack of replicates, at least one replicate


class Block(NamedTuple):
    """Some replicates, and the draw that they belong to or at which they are evaluated."""

    draw: PredictiveDraw
    stacked: Tensor  # (C, N, ...)
    rows: tuple[Tensor, ...]  # the same, C times (N, ...)
    together: bool  # whether blocks of these draws are evaluated as a whole

    def compared(self, x: Tensor) -> Block:
        """The compared data in a block of their own, to be evaluated as the replicates are."""
        return Block(self.draw, x.unsqueeze(0), (x,), self.together)


class SharedLikelihood:
    """A draw that remembers its two latest likelihoods, for several discrepancies of a block."""

    def __init__(self, draw: PredictiveDraw) -> None:
        self._draw = draw
        self._latest: list[tuple[Tensor, Distribution]] = []

    def replicate(self) -> Tensor:
        """Pass on to the draw."""
        return self._draw.replicate()

    def likelihood(self, x: Tensor) -> Distribution:
        """Likelihood of ``x``, computed once for the same tensor."""
        for known, likelihood in self._latest:
            if known is x:
                return likelihood
        likelihood = self._draw.likelihood(x)
        self._latest = [*self._latest[-1:], (x, likelihood)]
        return likelihood

    def __getattr__(self, name: str) -> Any:
        """Parameters of the draw, for discrepancies that know what they are."""
        return getattr(self._draw, name)


def blocks(reference: Reference, x: Tensor, longest: int = BLOCK_VALUES) -> Iterator[Block]:
    """Replicates of all draws in turn, stacked where draws allow it and d stays at one draw.

    Parameters
    ----------
    reference
        Where the discrepancies are evaluated, and the draws that replicate.
    x
        The compared data, shape (N, G).
    longest
        Largest number of replicates in a stack.

    Raises
    ------
    TypeError, ValueError
        If a draw or a replicate is not what it should be.
    """
    stack, at = reference.stack, reference.draw
    if stack is not None and at is not None:
        size = max(1, min(longest, BLOCK_VALUES // x.numel()))
        for start in range(reference.first, len(stack), size):
            stop = min(start + size, len(stack))
            chunk = stack.replicate_chunk(start, stop)
            require_like(chunk, (stop - start, *x.shape), x, f"replicate_chunk({start}, {stop})")
            yield Block(at, chunk, chunk.unbind(), size > 1)
            del chunk  # before the next one is made
        return
    for index, draw in enumerate(reference.replicating):
        require_draw(draw, f"draw {index}")
        x_rep = draw.replicate()
        require_like(x_rep, tuple(x.shape), x, f"replicate() of draw {index}")
        yield Block(draw, x_rep.unsqueeze(0), (x_rep,), False)
        del x_rep  # before the next one is made


def evaluate_block(discrepancy: Discrepancy, block: Block, at: PredictiveDraw) -> Tensor:
    """Values (C, ...) of the discrepancy, all replicates of the block at once where it can.

    Raises
    ------
    ValueError
        If the discrepancy changes its data in place.
    """
    before = _version(block.stacked)
    values = _values(discrepancy, block, at)
    if _version(block.stacked) != before:
        raise ValueError("the discrepancy changed its data in place; work on a copy.")
    return values


def _values(discrepancy: Discrepancy, block: Block, at: PredictiveDraw) -> Tensor:
    if block.together:
        # Sums over one data set alone are rounded in another order than those over several, which
        # would break the ties of discrete data: a single one is evaluated twice.
        n = len(block.stacked)
        several = block.stacked if n > 1 else block.stacked.expand(2, *block.stacked.shape[1:])
        try:
            return torch.vmap(lambda x: discrepancy(x, at))(several)[:n]
        except (RuntimeError, ValueError, TypeError, UserWarning):
            pass  # control flow that depends on the data: one replicate after the other
    return torch.stack([require_tensor(discrepancy(x, at)) for x in block.rows])


def _version(stacked: Tensor) -> int | None:
    """How often the data were changed in place; unknown in inference mode."""
    return None if stacked.is_inference() else stacked._version


def require_tensor(value: object) -> Tensor:
    """Raise TypeError unless a discrepancy returned a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the discrepancy must return a torch.Tensor, got {type(value).__name__}.")
    return value


def require_like(made: object, shape: tuple[int, ...], x: Tensor, source: str) -> None:
    """Raise TypeError or ValueError unless replicates have the shape, device and dtype wanted."""
    if not isinstance(made, Tensor):
        raise TypeError(f"{source} must return a torch.Tensor, got {type(made).__name__}.")
    if made.shape != shape:
        raise ValueError(
            f"{source} must return the shape of the data, {shape}, got {tuple(made.shape)}."
        )
    if made.device != x.device:
        raise ValueError(f"{source} must return data on {x.device}, got {made.device}.")
    if made.dtype != x.dtype:  # rounding would break ties and shift the comparison
        raise TypeError(f"{source} must return {x.dtype} like the data, got {made.dtype}.")
