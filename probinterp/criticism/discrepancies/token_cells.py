"""Discrepancies of activations with one value per layer and token type."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.token_layout import TYPE_NAMES, TokenLayout
from probinterp.criticism.token_residuals import TokenMoments, TokenResiduals


class CellDiscrepancy(ABC):
    r"""Discrepancy of activations (N, L, D), a vector over cells (layers by token type).

    It is called like any other discrepancy, and can also be had in two steps: a summary of every
    image by itself, then one value per cell of all images together or of each. Checks stream over
    images that way and never hold the activations of all of them.

    Parameters
    ----------
    layout
        How the tokens make up images.
    name
        What results call it.
    types
        Token types that it looks at; default those of the layout.
    layerwise
        Whether there is a value for every layer, or one for all layers together.

    Attributes
    ----------
    labels
        Names of the cells.
    axis
        ``"group"``: a value refers to a group of tokens.
    """

    axis = "group"

    def __init__(
        self,
        layout: TokenLayout,
        name: str,
        *,
        types: tuple[int, ...] | None = None,
        layerwise: bool = True,
    ) -> None:
        self.layout, self.__name__ = layout, name
        self.types = layout.types if types is None else types
        rows = [f"layer {i}, " for i in range(layout.n_layers)] if layerwise else [""]
        self.labels = tuple(row + TYPE_NAMES[kind] for kind in self.types for row in rows)

    def __call__(self, x: Tensor, draw: PredictiveDraw) -> Tensor:
        """Values of all images together, shape (C,), for activations (N, L, D)."""
        moments = TokenMoments(self.layout, draw.likelihood(x))
        return self.pooled(self.summary(TokenResiduals(self.layout.by_image(x), moments)))

    def summary(self, tokens: TokenResiduals) -> list[Tensor]:
        """What is kept of every image, by token type: float64 (I, R, K), R the number of cells."""
        return [self.summarise(tokens.of(kind)).double() for kind in self.types]

    def pooled(self, summary: list[Tensor]) -> Tensor:
        """One value per cell, shape (C,)."""
        return torch.cat([self.pool(one) for one in summary])

    def per_image(self, summary: list[Tensor]) -> Tensor:
        """One value per image and cell, shape (I, C)."""
        return torch.cat([self.each(one) for one in summary], 1)

    @abstractmethod
    def summarise(self, tokens: TokenResiduals) -> Tensor:
        """What is kept of every image: (I, R, K), from tokens of one type."""

    @abstractmethod
    def pool(self, summary: Tensor) -> Tensor:
        """Values of all images together, (R,), from their summary (I, R, K)."""

    @abstractmethod
    def each(self, summary: Tensor) -> Tensor:
        """Values of every image by itself, (I, R), from the summary (I, R, K)."""


def row_quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile along the last axis, interpolated linearly between order statistics."""
    position = q * (values.shape[-1] - 1)
    below = values.kthvalue(math.floor(position) + 1, dim=-1).values
    above = values.kthvalue(math.ceil(position) + 1, dim=-1).values
    return below + (above - below) * (position - math.floor(position))
