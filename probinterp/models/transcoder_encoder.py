"""Encoders of a transcoder: one linear map a layer, the same for every token."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from probinterp.models.encoder import at_least_float32
from probinterp.triangular_decoding import selected_pre_activations


class LayerwiseEncoder(nn.Module):
    r"""Pre-activations :math:`h^l = W^l s^l x^l + b^l` of every layer by itself.

    Parameters
    ----------
    n_layers, width, n_latents
        L, D and H.

    Attributes
    ----------
    scale
        Factors s that bring the inputs of each layer to a mean norm of :math:`\sqrt D`, (L, 1).
    """

    scale: Tensor

    def __init__(self, n_layers: int, width: int, n_latents: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_layers, n_latents, width))
        self.bias = nn.Parameter(torch.zeros(n_layers, n_latents))
        self.register_buffer("scale", torch.ones(n_layers, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Pre-activations (N, L, H) of inputs (N, L, D), in single precision or better."""
        require_shape("inputs", inputs, self.weight.shape[::2])
        by_layer = self.scaled(inputs).transpose(0, 1)
        pre = torch.baddbmm(self.bias.unsqueeze(1), by_layer, self.weight.mT)
        return at_least_float32(pre.transpose(0, 1))

    def at_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Pre-activations (N, H) of the inputs (N, D) of one layer."""
        require_shape("inputs", inputs, self.weight.shape[2:])
        pre = torch.addmm(self.bias[layer], inputs * self.scale[layer], self.weight[layer].mT)
        return at_least_float32(pre)

    def selected(self, inputs: Tensor, pre: Tensor, indices: Tensor) -> Tensor:
        """Pre-activations (N, L, k) of selected latents, which alone have gradients.

        Parameters
        ----------
        inputs
            Shape (N, L, D).
        pre
            Pre-activations of these inputs, (N, L, H).
        indices
            Selected latents, (N, L, k) int64.
        """
        scaled = self.scaled(inputs)
        return selected_pre_activations(scaled, self.weight, self.bias, pre, indices)

    def scaled(self, inputs: Tensor) -> Tensor:
        """Inputs (N, L, D) of norm sqrt(D) on average."""
        return inputs * self.scale

    @torch.no_grad()
    def start(self, how: Literal["zero", "uniform", "normal"]) -> None:
        """Set starting values in place."""
        _, n_latents, width = self.weight.shape
        if how == "uniform":
            self.weight.uniform_(-1 / math.sqrt(n_latents), 1 / math.sqrt(n_latents))
        else:
            self.weight.normal_(0.0, 1 / math.sqrt(width))

    @torch.no_grad()
    def fold(self) -> None:
        """Move the scale into the weights."""
        self.weight.mul_(self.scale.unsqueeze(1))
        self.scale.fill_(1.0)


def root_width_scale(values: Tensor, name: str) -> Tensor:
    r"""Factors (L, 1) that bring values (B, L, D) of each layer to a mean norm of sqrt(D).

    Raises
    ------
    ValueError
        If the values of a layer are all zero.
    """
    norm = values.double().norm(dim=2).mean(0)
    if not (norm > 0).all():
        layer = int((~(norm > 0)).nonzero()[0])
        raise ValueError(f"{name} of layer {layer} are all zero: there is nothing to learn.")
    return (math.sqrt(values.shape[2]) / norm).to(values.dtype).unsqueeze(1)


def require_shape(name: str, value: Tensor, shape: torch.Size | tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` has shape (N, *shape)."""
    if value.ndim != len(shape) + 1 or value.shape[1:] != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(value.shape)}.")
