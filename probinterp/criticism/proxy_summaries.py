"""Activations replaced by a summary of every image, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.blocks import require_like
from probinterp.criticism.discrepancies.token_cells import CellDiscrepancy
from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.reference import find_reference, require_draw
from probinterp.criticism.token_layout import TokenLayout
from probinterp.criticism.token_residuals import TokenMoments, TokenResiduals

MakeSuite = Callable[[TokenLayout], Mapping[str, CellDiscrepancy]]


class ProxyBlock(NamedTuple):
    """Some of the compared images.

    Parameters
    ----------
    draws
        Draws that replicate the activations of these images, as many for every block.
    x
        Their activations, shape (N, L, D).
    layout
        How these tokens make up images.
    """

    draws: Iterable[PredictiveDraw]
    x: Tensor
    layout: TokenLayout


class SummaryDraw:
    """One draw of all blocks: its replicate has a row of summaries for every image."""

    def __init__(self, replicate: Callable[[], Tensor]) -> None:
        self._replicate = replicate

    def replicate(self) -> Tensor:
        """Summaries of replicated activations, (I, V)."""
        return self._replicate()

    def likelihood(self, x: Tensor) -> Distribution:
        """Refuse: summaries have no density."""
        raise TypeError("summaries of images have no likelihood.")


class SummaryDraws:
    """Draws of summaries (I, V) made of draws of activations, block by block; to be used once.

    The discrepancies are evaluated at one draw per block, its ``reference`` or the first, for the
    data and for all replicates.

    Parameters
    ----------
    blocks
        The images in blocks.
    make_suite
        Makes the discrepancies by name from the layout of a block.

    Attributes
    ----------
    heldout
        Summaries of the compared data, (I, V).
    suite
        Discrepancies of the first block.
    """

    def __init__(self, blocks: Sequence[ProxyBlock], make_suite: MakeSuite) -> None:
        self._parts = [_Part(block, make_suite(block.layout)) for block in blocks]
        first = self._parts[0]
        self.suite = first.suite
        self.reference = SummaryDraw(lambda: self.heldout)
        self.local = getattr(blocks[0].draws, "local", None)
        self.point_estimate = getattr(blocks[0].draws, "point_estimate", False)
        n_obs = getattr(blocks[0].draws, "n_obs", None)
        self.n_obs = None if n_obs is None else max(1, n_obs // blocks[0].layout.n_tokens)
        self.heldout = torch.cat([part.row_of_summaries(part.block.x) for part in self._parts])

    def __iter__(self) -> Iterator[SummaryDraw]:
        iterators = [part.replicating for part in self._parts]
        for index, draws in enumerate(zip(*iterators, strict=True)):
            yield SummaryDraw(lambda index=index, draws=draws: self._replicated(index, draws))  # type: ignore[misc]

    def columns(self, name: str, rows: Tensor) -> list[Tensor]:
        """Summary of one discrepancy by token type, from rows (I, V)."""
        return self._parts[0].columns(name, rows)

    def _replicated(self, index: int, draws: Sequence[PredictiveDraw]) -> Tensor:
        rows = []
        for part, draw in zip(self._parts, draws, strict=True):
            require_draw(draw, f"draw {index}")
            x_rep = draw.replicate()
            x = part.block.x
            require_like(x_rep, tuple(x.shape), x, f"replicate() of draw {index}")
            rows.append(part.row_of_summaries(x_rep))
        return torch.cat(rows)


class _Part:
    """A block with the moments at which its discrepancies are evaluated."""

    def __init__(self, block: ProxyBlock, suite: Mapping[str, CellDiscrepancy]) -> None:
        self.block, self.suite = block, suite
        found = find_reference(block.draws, "plugin", None, 1)
        assert found.draw is not None
        self.replicating = found.replicating
        with torch.no_grad():
            self._moments = TokenMoments(block.layout, found.draw.likelihood(block.x))
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    @torch.no_grad()
    def row_of_summaries(self, x: Tensor) -> Tensor:
        tokens = TokenResiduals(self.block.layout.by_image(x), self._moments)
        rows = []
        for name, discrepancy in self.suite.items():
            summary = discrepancy.summary(tokens)
            self._shapes[name] = [tuple(one.shape[1:]) for one in summary]
            rows += [one.flatten(1) for one in summary]
        return torch.cat(rows, 1)

    def columns(self, name: str, rows: Tensor) -> list[Tensor]:
        found, start = [], 0
        for known, shapes in self._shapes.items():
            for cells, width in shapes:
                if known == name:
                    part = rows[:, start : start + cells * width]
                    found.append(part.unflatten(1, (cells, width)))
                start += cells * width
        return found


def pooled_values(draws: SummaryDraws, name: str) -> Any:
    """Discrepancy of summaries: one value per cell, of all images together."""

    def pooled(rows: Tensor, draw: PredictiveDraw) -> Tensor:
        return draws.suite[name].pooled(draws.columns(name, rows))

    pooled.axis, pooled.labels = "group", draws.suite[name].labels  # type: ignore[attr-defined]
    return pooled


def image_values(draws: SummaryDraws, name: str) -> Any:
    """Discrepancy of summaries: one value per image and cell, flattened."""

    def each(rows: Tensor, draw: PredictiveDraw) -> Tensor:
        return draws.suite[name].per_image(draws.columns(name, rows)).flatten()

    return each
