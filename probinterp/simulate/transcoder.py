"""Layers of a network whose outputs are sparse sums of planted features of several layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FIRE_RATE = 0.08
CONNECTED = 0.4  # share of features that write to each later layer
INPUT_NOISE, OUTPUT_NOISE = 0.02, 0.05


class TranscoderTokens(NamedTuple):
    """Simulated tokens: outputs and inputs (N, L, D), codes (N, L, G)."""

    x: Tensor
    inputs: Tensor
    codes: Tensor


class PlantedTranscoder:
    r"""Features that are read from one layer and write to it and some later layers.

    .. math:: x^l = \sum_g a_{lg} A_{lg} + 0.02\, \epsilon, \quad
        y^t = \sum_{l \le t} \sum_g a_{lg} D_{l \to t, g} + 0.05\, \epsilon

    Codes a are zero but for a share of 0.08, there :math:`\max(0.1, 1 + 0.3 \epsilon)`. Read-in
    directions A have length one. Write-out directions D are normal with variance 1/D; each
    feature writes to its own layer, and to each later one with probability 0.4.

    Parameters
    ----------
    seed
        Seed of the directions and of all tokens.
    n_layers, width, n_features
        L layers of width D with G features each.
    """

    def __init__(
        self, seed: int, *, n_layers: int = 3, width: int = 16, n_features: int = 24
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        shape = (n_layers, n_layers, n_features)
        read = self._normal(n_layers, n_features, width)
        self.read = read / read.norm(dim=2, keepdim=True)
        write = self._normal(*shape, width) / width**0.5
        kept = torch.rand(shape, generator=self.generator) < CONNECTED
        own = torch.eye(n_layers, dtype=torch.bool).unsqueeze(2)
        later = torch.ones(n_layers, n_layers, dtype=torch.bool).triu(1).unsqueeze(2)
        self.connected = own | (later & kept)
        self.write = write * self.connected.unsqueeze(3)

    def tokens(self, n: int) -> TranscoderTokens:
        """The next n tokens; every call gives others."""
        n_layers, n_features, width = self.read.shape
        shape = (n, n_layers, n_features)
        active = torch.rand(shape, generator=self.generator) < FIRE_RATE
        codes = active * (1 + 0.3 * self._normal(*shape)).clamp_min(0.1)
        inputs = torch.einsum("nlg,lgd->nld", codes, self.read)
        inputs = inputs + INPUT_NOISE * self._normal(n, n_layers, width)
        outputs = torch.einsum("nlg,ltgd->ntd", codes, self.write)
        return TranscoderTokens(
            outputs + OUTPUT_NOISE * self._normal(n, n_layers, width), inputs, codes
        )

    def decoders(self) -> Tensor:
        """Write-out directions of each feature to all layers side by side, (L, G, L D)."""
        return self.write.transpose(1, 2).flatten(2)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)
