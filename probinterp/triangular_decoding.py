r"""Decoders from every layer to itself and all later ones, without masks and without copies.

Codes z are (B, L, H): B tokens, L layers, H latents a layer. Layer j is written by the layers
i <= j,

.. math:: \hat y^j = \sum_{i \le j} z^i W^{i \to j},

for which two memory layouts exist. *By target*: one matrix ((j + 1) H, D) for target j, so that
:math:`\hat y^j` is the product of a prefix of the contiguous codes with it (:func:`prefix_decode`).
*By source*: one matrix (H, (L - i) D) for source i, a wide row per latent, so that an active
code reads one contiguous row and writes to all its targets (:func:`sparse_decode`). Decoders of a
layer to itself alone are the same with matrices (H, D); shapes say which is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


class SparseCodes(NamedTuple):
    """Codes of which few are not zero.

    Attributes
    ----------
    indices
        Latents that may be active, (B, L, k) int64; different ones for a token and layer.
    values
        Their codes, (B, L, k).
    """

    indices: Tensor
    values: Tensor

    def dense(self, n_latents: int) -> Tensor:
        """The same codes with all zeros, (B, L, H)."""
        shape = (*self.indices.shape[:-1], n_latents)
        return self.values.new_zeros(shape).scatter(-1, self.indices, self.values)


def reference_decode(z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Outputs (B, L, D) of codes (B, L, H) by the double loop over targets and sources.

    Parameters
    ----------
    z
        Codes, (B, L, H).
    weights
        One matrix a target, ((j + 1) H, D), or (H, D) for a decoder of the layer itself.
    """
    n_latents = z.shape[2]
    outputs = []
    for target, weight in enumerate(weights):
        blocks = weight.split(n_latents)
        first = target + 1 - len(blocks)
        parts = [z[:, first + i] @ block for i, block in enumerate(blocks)]
        outputs.append(torch.stack(parts).sum(0))
    return torch.stack(outputs, 1)


def prefix_decode(z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    r"""Outputs (B, L, D) of dense codes (B, L, H), one product a target.

    The codes of the layers 0 to j of one token are neighbours in memory, so that a strided view of
    them meets the packed decoders of target j: no gather, no padding, no wasted multiplications.
    The gradient by the codes adds up in place, and that by the decoders is one product a target.
    Products run in the type of an enclosing autocast region.

    Parameters
    ----------
    z
        Codes, (B, L, H).
    weights
        One matrix a target, ((j + 1) H, D), or (H, D) for a decoder of the layer itself.

    Returns
    -------
    Tensor
        Shape (B, L, D), a view of memory with layers first.
    """
    low = _autocast_type(z)
    z, weights = z.to(low), [weight.to(low) for weight in weights]
    with torch.autocast(z.device.type, enabled=False):
        if torch.compiler.is_compiling():  # the compiler plans the memory itself
            flat, n_latents = z.flatten(1), z.shape[2]
            columns = [flat[:, _sources(j, w, n_latents)] for j, w in enumerate(weights)]
            return torch.stack([c @ w for c, w in zip(columns, weights, strict=True)], 1)
        return _PrefixDecode.apply(z, *weights)


class _PrefixDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, *weights: Tensor) -> Tensor:
        flat, n_latents = z.contiguous().flatten(1), z.shape[2]
        outputs = z.new_empty(len(weights), len(z), weights[0].shape[1])
        for target, weight in enumerate(weights):
            columns = flat[:, _sources(target, weight, n_latents)]
            torch.mm(columns, weight, out=outputs[target])
        ctx.save_for_backward(flat, *weights)
        ctx.shape = z.shape
        return outputs.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, *weights = ctx.saved_tensors
        n_latents = ctx.shape[2]
        by_target = gradient.transpose(0, 1).contiguous()
        d_weights = [
            flat[:, _sources(target, weight, n_latents)].mT @ by_target[target] if needed else None
            for target, (weight, needed) in enumerate(
                zip(weights, ctx.needs_input_grad[1:], strict=True)
            )
        ]
        if not ctx.needs_input_grad[0]:
            return None, *d_weights
        d_flat = torch.empty_like(flat)
        written = flat.shape[1]  # columns from here on hold a gradient already
        for target in reversed(range(len(weights))):
            columns, weight = _sources(target, weights[target], n_latents), weights[target]
            new = max(0, min(columns.stop, written) - columns.start)
            if new:
                fresh = d_flat[:, columns.start : columns.start + new]
                torch.mm(by_target[target], weight[:new].mT, out=fresh)
            if new < len(weight):
                rest = d_flat[:, columns.start + new : columns.stop]
                rest.addmm_(by_target[target], weight[new:].mT)
            written = min(written, columns.start)
        return d_flat.view(ctx.shape), *d_weights


def _sources(target: int, weight: Tensor, n_latents: int) -> slice:
    """Columns of the flat codes that write to a target."""
    stop = (target + 1) * n_latents
    return slice(stop - len(weight), stop)


def wide_decode(z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Outputs (B, L, D) of dense codes (B, L, H) and decoders packed by source.

    Parameters
    ----------
    z
        Codes, (B, L, H).
    weights
        One matrix a source, (H, (L - i) D), or (H, D) for a decoder of the layer itself.
    """
    low = _autocast_type(z)
    width = weights[-1].shape[1]
    outputs = z.new_zeros(len(z), len(weights) * width, dtype=low)
    for source, weight in enumerate(weights):
        first = source * width
        outputs[:, first : first + weight.shape[1]] += z[:, source] @ weight
    return outputs.unflatten(1, (len(weights), width))


def sparse_decode(codes: SparseCodes, weights: Sequence[Tensor]) -> Tensor:
    """Outputs (B, L, D) of sparse codes, one wide decoder row for every active latent.

    Parameters
    ----------
    codes
        Active latents of B tokens and L layers.
    weights
        One matrix a source, (H, (L - i) D), or (H, D) for a decoder of the layer itself.

    Returns
    -------
    Tensor
        Shape (B, L, D).
    """
    low = _autocast_type(codes.values)
    weights, value = [weight.to(low) for weight in weights], codes.values.to(low)
    n_tokens, n_layers = codes.indices.shape[:2]
    width = weights[-1].shape[1]
    outputs = value.new_zeros(n_tokens, n_layers * width)
    with torch.autocast(value.device.type, enabled=False):
        for source, weight in enumerate(weights):
            active, given = codes.indices[:, source], value[:, source].contiguous()
            # the library's gradient by the rows is a scatter, so it sees none
            bags = embedding_bag(active, weight.detach(), mode="sum", per_sample_weights=given)
            bags = _RowsGradient.apply(bags, weight, given.detach(), active)
            first = source * width
            outputs[:, first : first + weight.shape[1]] += bags
    return outputs.view(n_tokens, n_layers, width)


def selected_pre_activations(
    inputs: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, indices: Tensor
) -> Tensor:
    """Pre-activations of selected latents, which alone have gradients.

    Parameters
    ----------
    inputs
        Inputs of every layer, (B, L, D).
    weight, bias
        Encoder, (L, H, D) and (L, H).
    pre
        Pre-activations of these inputs, (B, L, H); no gradient passes through them.
    indices
        Selected latents, (B, L, k) int64.

    Returns
    -------
    Tensor
        Shape (B, L, k). Inputs, weight and bias get their gradients from the selected latents,
        row by row, without a dense (B, L, H) in between.
    """
    chosen = pre.detach().gather(-1, indices)
    return _SelectedGradient.apply(chosen, inputs, weight, bias, indices)


class _SelectedGradient(torch.autograd.Function):
    """Identity on selected pre-activations that gives what made them its gradients."""

    @staticmethod
    def forward(
        ctx: Any, chosen: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor, indices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, indices)
        return chosen.view_as(chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, indices = ctx.saved_tensors
        n_layers, n_latents, width = weight.shape
        offsets = n_latents * torch.arange(n_layers, device=indices.device).unsqueeze(1)
        rows, given = (indices + offsets).flatten(0, 1), gradient.flatten(0, 1).contiguous()
        d_inputs = d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            packed = weight.flatten(0, 1).to(given.dtype)
            d_inputs = embedding_bag(rows, packed, mode="sum", per_sample_weights=given)
            d_inputs = d_inputs.view_as(inputs).to(inputs.dtype)
        if ctx.needs_input_grad[2]:
            tokens = inputs.reshape(-1, width).to(given.dtype)
            d_weight = _gathered(tokens, rows, given, n_layers * n_latents).view_as(weight)
        if ctx.needs_input_grad[3]:
            d_bias = given.new_zeros(n_layers * n_latents)
            d_bias = d_bias.index_add(0, rows.flatten(), given.flatten()).view(n_layers, -1)
        return None, d_inputs, d_weight, d_bias, None


class _RowsGradient(torch.autograd.Function):
    """Identity on sums of rows that gives the rows their gradient."""

    @staticmethod
    def forward(ctx: Any, bags: Tensor, weight: Tensor, value: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(value, index)
        ctx.n_latents = len(weight)
        return bags.view_as(bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None
        value, index = ctx.saved_tensors
        return gradient, _gathered(gradient.contiguous(), index, value, ctx.n_latents), None, None


def _gathered(rows: Tensor, index: Tensor, value: Tensor, n_latents: int) -> Tensor:
    """Sum (H, W) of the rows of the tokens in which a latent is active, times its codes.

    Tokens are sorted by latent, so that every row of the result is written once.
    """
    flat = index.flatten()
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=n_latents).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    tokens, given = order // index.shape[1], value.flatten()[order]
    return embedding_bag(tokens, rows, starts, mode="sum", per_sample_weights=given)


def _autocast_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def by_source(weights: Sequence[Tensor], n_latents: int) -> list[Tensor]:
    """Decoders packed by target, packed by source instead."""
    n_layers = len(weights)
    blocks = {
        (target + 1 - len(weight) // n_latents + i, target): block
        for target, weight in enumerate(weights)
        for i, block in enumerate(weight.split(n_latents))
    }
    return [
        torch.cat([blocks[i, j] for j in range(i, n_layers) if (i, j) in blocks], 1)
        for i in range(n_layers)
    ]


def by_target(weights: Sequence[Tensor], width: int) -> list[Tensor]:
    """Decoders packed by source, packed by target instead."""
    n_layers = len(weights)
    blocks = {
        (source, source + k): block
        for source, weight in enumerate(weights)
        for k, block in enumerate(weight.split(width, dim=1))
    }
    return [
        torch.cat([blocks[i, j] for i in range(j + 1) if (i, j) in blocks]) for j in range(n_layers)
    ]
