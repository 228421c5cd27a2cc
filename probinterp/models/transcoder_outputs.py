"""What a transcoder adds to the decoded codes: biases, a linear skip map, the units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probinterp.models.encoder import at_least_float32


class LayerOutputs(nn.Module):
    r"""Outputs in normalised units, :math:`\sum_i z^i W^{i \to j} + b^j + x^j A^j`.

    Parameters
    ----------
    n_layers, width
        L and D.
    skip
        Whether there is a linear map A of the scaled inputs of each layer.

    Attributes
    ----------
    scale
        Factors that bring the outputs of each layer to a mean norm of :math:`\sqrt D`, (L, 1).
    """

    scale: Tensor

    def __init__(self, n_layers: int, width: int, *, skip: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_layers, width))
        self.skip = nn.Parameter(torch.zeros(n_layers, width, width)) if skip else None
        self.register_buffer("scale", torch.ones(n_layers, 1))

    def forward(self, decoded: Tensor, inputs: Tensor | None) -> Tensor:
        """Outputs (N, L, D) from decoded codes and scaled inputs, both (N, L, D)."""
        total = at_least_float32(decoded) + self.bias
        if self.skip is None:
            return total
        by_layer = _given(inputs).transpose(0, 1)
        return total + at_least_float32(torch.bmm(by_layer, self.skip).transpose(0, 1))

    def at_layer(self, decoded: Tensor | None, inputs: Tensor | None, layer: int) -> Tensor:
        """Outputs (N, D), or (D,), of one layer in its own units; ``decoded`` None for no codes."""
        total = self.bias[layer] if decoded is None else decoded + self.bias[layer]
        if self.skip is not None:
            total = total + _given(inputs) @ self.skip[layer]
        return total / self.scale[layer]

    @property
    def unit(self) -> Tensor:
        """Size of a normalised unit in the units of the outputs, (L, 1)."""
        return self.scale.reciprocal()

    @torch.no_grad()
    def fold(self, input_scale: Tensor) -> None:
        """Move the scales of outputs and of inputs, (L, 1), into bias and skip map."""
        self.bias.div_(self.scale)
        if self.skip is not None:
            self.skip.mul_((input_scale / self.scale).unsqueeze(1))
        self.scale.fill_(1.0)


def _given(inputs: Tensor | None) -> Tensor:
    if inputs is None:
        raise ValueError("the skip map needs the inputs, got None.")
    return inputs
