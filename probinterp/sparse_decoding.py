"""Streaming evaluation of the sparse decoder, one cache-sized chunk of features at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from probinterp.likelihoods import Features, Likelihood, ObservedBatch
from probinterp.single_factor import ConstantFeatures, SingleFactorFeatures

WIDTH_MULTIPLE = 16  # products with 15 columns run at a third of the speed of those with 16
PAIRS_PER_CHUNK = 2**17  # (observation, feature) pairs where no H-vector is kept for a pair


class DecoderWeights(NamedTuple):
    """Weights shared by all routes through the decoder.

    ``first`` A (H, K), ``second`` M (H, H) with ``second_bias`` m (H,), ``heads`` (G, H) and
    ``bias`` (G,). The same tuple holds their gradients.
    """

    first: Tensor
    second: Tensor
    second_bias: Tensor
    heads: Tensor
    bias: Tensor


class Inputs(NamedTuple):
    """Arguments of the decoder, or their gradients: z (B, K), loadings (G, K), weights."""

    z: Tensor
    loadings: Tensor
    weights: DecoderWeights

    def zeros(self) -> Inputs:
        """Zero gradients for every argument."""
        weights = DecoderWeights(*(torch.zeros_like(weight) for weight in self.weights))
        return Inputs(torch.zeros_like(self.z), torch.zeros_like(self.loadings), weights)


@dataclass(frozen=True)
class FeaturePlan:
    """Features by the number of factors that reach them: several, exactly one, none."""

    several: Features
    single: tuple[tuple[int, Tensor], ...]
    empty: Features


def all_features_plan(n_features: int) -> FeaturePlan:
    """Plan that assumes nothing about the loadings."""
    return FeaturePlan(slice(0, n_features), (), slice(0, 0))


def plan_features(support: Tensor) -> FeaturePlan:
    """Sort features by their support.

    Parameters
    ----------
    support
        True where a factor reaches a feature, shape (G, K). It is copied to the host once.
    """
    on_host = support.cpu()
    n_active, factor = on_host.sum(1), on_host.int().argmax(1)
    if bool((n_active > 1).all()):
        return all_features_plan(len(support))
    single = n_active == 1
    groups = tuple(
        (k, (single & (factor == k)).nonzero().squeeze(1).to(support.device))
        for k in factor[single].unique().tolist()
    )
    several, empty = ((n_active > 1).nonzero().squeeze(1), (n_active == 0).nonzero().squeeze(1))
    return FeaturePlan(several.to(support.device), groups, empty.to(support.device))


class Route(Protocol):
    """A way to compute some features; ``backward`` follows the ``forward`` it belongs to."""

    def forward(self, features: Features) -> Tensor:
        """Return eta of the features, transposed: (G', B)."""

    def backward(self, d_eta: Tensor) -> None:
        """Add the gradients for ``d_eta`` (G', B) of the latest features."""


class HiddenLayer:
    """Products with the second layer M, H x H, optionally rounded to a half precision type."""

    def __init__(self, second: Tensor, dtype: torch.dtype | None) -> None:
        self.rounded = dtype is not None and dtype != second.dtype
        self.second = second.to(dtype) if self.rounded else second
        self.transposed = self.second.mT.contiguous()

    def forward(self, one: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """Return M one + m in ``out``."""
        if not self.rounded:
            return torch.addmm(bias, one, self.transposed, out=out)
        self.one = one.to(self.second.dtype)
        return out.copy_(self.one @ self.transposed).add_(bias)

    def backward(self, d_two: Tensor, one: Tensor, out: Tensor, d_second: Tensor) -> Tensor:
        """Add to the gradient of M and return that of ``one`` in ``out``."""
        if not self.rounded:
            d_second.addmm_(d_two.mT, one)
            return torch.mm(d_two, self.second, out=out)
        d_two = d_two.to(self.second.dtype)
        d_second += d_two.mT @ self.one
        return out.copy_(d_two @ self.second)


class SeveralFactorFeatures:
    """Features of any support: both trunk layers, activations (G', B, H) of one chunk.

    The gradients are added to ``gradients``; buffers are allocated once and used by all chunks.
    """

    def __init__(
        self, inputs: Inputs, gradients: Inputs, chunk_size: int, dtype: torch.dtype | None
    ) -> None:
        z, loadings, weights = inputs
        n_hidden, n_factors = weights.first.shape
        extra = -n_factors % WIDTH_MULTIPLE
        self.n_factors, self.weights, self.gradients = n_factors, weights, gradients
        self.z, self.loadings = pad(z, (0, extra)), pad(loadings, (0, extra))
        self.first = pad(weights.first, (0, extra)).contiguous()
        self.first_t, self.second = self.first.mT.contiguous(), HiddenLayer(weights.second, dtype)
        self.d_z, self.d_first_t = torch.zeros_like(self.z), torch.zeros_like(self.first_t)
        n_pairs, width = chunk_size * len(z), n_factors + extra
        self.masked, self.d_masked = z.new_empty(2, n_pairs, width)
        self.one, self.two, self.d_two = z.new_empty(3, n_pairs, n_hidden)
        self.ones = z.new_ones(n_pairs)

    def forward(self, features: Features) -> Tensor:
        """Return h_j . relu(M relu(A (w_j * z)) + m) + c_j, shape (G', B)."""
        self.features, weights = features, self.weights
        self.rows, self.head = self.loadings[features].unsqueeze(1), weights.heads[features]
        n, b = len(self.head), len(self.z)
        masked, one, two = (t[: n * b] for t in (self.masked, self.one, self.two))
        torch.mul(self.z, self.rows, out=masked.view(n, b, -1))
        torch.mm(masked, self.first_t, out=one).relu_()
        self.second.forward(one, weights.second_bias, out=two).relu_()
        # Row times matrix: the same product as matrix times column takes eight times as long.
        eta = torch.bmm(self.head.unsqueeze(1), two.view(n, b, -1).mT).squeeze(1)
        return eta.add_(weights.bias[features].unsqueeze(-1))

    def backward(self, d_eta: Tensor) -> None:
        """Add the gradients; the activations of the chunk are overwritten."""
        mask = torch.ops.aten.threshold_backward.grad_input
        n, b = d_eta.shape
        masked, d_masked = (t[: n * b] for t in (self.masked, self.d_masked))
        one, two, d_two = (t[: n * b] for t in (self.one, self.two, self.d_two))
        grads = self.gradients.weights
        grads.bias[self.features] = d_eta.sum(1)
        grads.heads[self.features] = torch.bmm(d_eta.unsqueeze(1), two.view(n, b, -1)).squeeze(1)
        torch.mul(d_eta.unsqueeze(-1), self.head.unsqueeze(1), out=d_two.view(n, b, -1))
        mask(d_two, two, 0, grad_input=d_two)
        grads.second_bias.addmv_(d_two.mT, self.ones[: n * b])
        d_one = self.second.backward(d_two, one, out=two, d_second=grads.second)
        mask(d_one, one, 0, grad_input=d_one)
        self.d_first_t.addmm_(masked.mT, d_one)
        torch.mm(d_one, self.first, out=d_masked)
        d_masked, scratch = d_masked.view(n, b, -1), masked.view(n, b, -1)
        self.d_z += torch.mul(d_masked, self.rows, out=scratch).sum(0)
        d_rows = torch.mul(d_masked, self.z, out=scratch).sum(1)
        self.gradients.loadings[self.features] = d_rows[:, : self.n_factors]

    def finish(self) -> None:
        """Move the sums over chunks into the gradients."""
        self.gradients.z.add_(self.d_z[:, : self.n_factors])
        self.gradients.weights.first.add_(self.d_first_t[: self.n_factors].mT)


@dataclass(frozen=True)
class Schedule:
    """How the features are visited: the plan, the size of a chunk, the precision of M."""

    plan: FeaturePlan
    chunk_size: int
    dtype: torch.dtype | None = None

    def visit(self, inputs: Inputs, gradients: Inputs) -> Iterator[tuple[Route, Features]]:
        """Yield every chunk with its route; the gradients are complete at exhaustion."""
        plan, n_rows = self.plan, max(1, len(inputs.z))
        if isinstance(plan.several, slice) or len(plan.several):
            several = SeveralFactorFeatures(inputs, gradients, self.chunk_size, self.dtype)
            for features in _chunks(plan.several, self.chunk_size):
                yield several, features
            several.finish()
        n_light = max(1, PAIRS_PER_CHUNK // max(n_rows, 2 * len(inputs.weights.second)))
        for factor, group in plan.single:
            single = SingleFactorFeatures(inputs, gradients, factor)
            for features in _chunks(group, n_light):
                yield single, features
            single.finish()
        constant = ConstantFeatures(inputs, gradients)
        for features in _chunks(plan.empty, n_light):
            yield constant, features


def _chunks(features: Features, size: int) -> Iterator[Features]:
    if isinstance(features, slice):
        for start in range(features.start, features.stop, size):
            yield slice(start, min(start + size, features.stop))
    else:
        yield from (chunk for chunk in features.split(size) if len(chunk))


def decode(inputs: Inputs, schedule: Schedule) -> Tensor:
    """Decoder output eta (B, G); activations are computed again in the backward pass."""
    return _Decode.apply(schedule, inputs.z, inputs.loadings, *inputs.weights)


def decoded_log_prob(
    inputs: Inputs, schedule: Schedule, likelihood: Likelihood, batch: ObservedBatch, x: Tensor
) -> Tensor:
    r"""Log likelihood of x given z, its gradients computed in the same pass over the features.

    .. math:: \log p(x_b \mid z_b) = \sum_j \log p(x_{bj} \mid \eta_{bj})

    Every chunk of features is decoded, compared with its part of x and differentiated before the
    next one, so that neither activations nor eta of more than a chunk exist. This computes the
    gradient of the plain sum over rows. If the rows turn out to be weighted equally in the
    backward pass, it is scaled; otherwise, and always on a GPU, where asking would make the host
    wait, the pass is repeated with the true weights and the result is exact as well.

    Parameters
    ----------
    inputs
        Arguments of the decoder.
    schedule
        How to visit the features.
    likelihood
        A likelihood whose log density is a sum over features.
    batch
        Passed on to the likelihood.
    x
        Observed features, shape (B, G).

    Returns
    -------
    Tensor
        Shape (B,).
    """
    parameters = [p for p in likelihood.parameters() if p.requires_grad]
    tensors = (inputs.z, inputs.loadings, *inputs.weights, *parameters)
    task = _Task(schedule, likelihood, batch, x.detach(), parameters)
    ahead = torch.is_grad_enabled() and not x.is_cuda and any(t.requires_grad for t in tensors)
    return _DecodedLogProb.apply(task, ahead, *tensors)


def _float32_ops(tensor: Tensor) -> torch.autocast:
    """Switch autocast off: the products that may be rounded are rounded explicitly."""
    return torch.autocast(tensor.device.type, enabled=False)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, schedule: Schedule, *tensors: Tensor) -> Tensor:
        ctx.schedule = schedule
        ctx.save_for_backward(*tensors)
        inputs = _inputs(tensors)
        eta = inputs.z.new_empty(len(inputs.z), len(inputs.loadings))
        with _float32_ops(eta):
            for route, features in schedule.visit(inputs, inputs.zeros()):
                eta[:, features] = route.forward(features).mT
        return eta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_eta: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _inputs(ctx.saved_tensors)
        gradients = inputs.zeros()
        with _float32_ops(d_eta):
            for route, features in ctx.schedule.visit(inputs, gradients):
                route.forward(features)
                route.backward(d_eta[:, features].mT.contiguous())
        return None, gradients.z, gradients.loadings, *gradients.weights


@dataclass(frozen=True)
class _Task:
    """What the streamed log likelihood needs beside the tensors that it differentiates."""

    schedule: Schedule
    likelihood: Likelihood
    batch: ObservedBatch
    x: Tensor
    parameters: list[nn.Parameter]

    def values(self, inputs: Inputs) -> Tensor:
        """Log likelihood of each row, (B,)."""
        total = inputs.z.new_zeros(len(inputs.z))
        for route, features in self.schedule.visit(inputs, inputs.zeros()):
            eta = route.forward(features).mT
            total += self.likelihood(eta, self.batch, features).log_prob(self.x[:, features])
        return total

    def values_and_gradients(
        self, inputs: Inputs, row_weight: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Log likelihood of each row and the gradients of its (weighted) sum."""
        gradients = inputs.zeros()
        d_parameters = [torch.zeros_like(p) for p in self.parameters]
        total = inputs.z.new_zeros(len(inputs.z))
        for route, features in self.schedule.visit(inputs, gradients):
            eta = route.forward(features).mT.detach().requires_grad_()
            with torch.enable_grad():
                values = self.likelihood(eta, self.batch, features).log_prob(self.x[:, features])
            d_eta, *d_chunk = torch.autograd.grad(
                values, [eta, *self.parameters], _ones(values, row_weight), allow_unused=True
            )
            total += values.detach()
            for d_parameter, d in zip(d_parameters, d_chunk, strict=True):
                if d is not None:
                    d_parameter += d
            route.backward(d_eta.mT.contiguous())
        return total, (gradients.z, gradients.loadings, *gradients.weights, *d_parameters)


class _DecodedLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: _Task, ahead: bool, *tensors: Tensor) -> Tensor:
        ctx.task = task
        ctx.save_for_backward(*tensors)
        ctx.gradients = None
        with _float32_ops(task.x):
            if not ahead:
                return task.values(_inputs(tensors))
            values, ctx.gradients = task.values_and_gradients(_inputs(tensors), None)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if ctx.gradients is not None and bool((grad == grad[:1]).all()):
            return None, None, *(gradient * grad[:1].sum() for gradient in ctx.gradients)
        with _float32_ops(grad):
            _, gradients = ctx.task.values_and_gradients(_inputs(tensors), grad)
        return None, None, *gradients


def _inputs(tensors: tuple[Tensor, ...]) -> Inputs:
    return Inputs(tensors[0], tensors[1], DecoderWeights(*tensors[2:7]))


def _ones(values: Tensor, row_weight: Tensor | None) -> Tensor:
    return torch.ones_like(values) if row_weight is None else row_weight
