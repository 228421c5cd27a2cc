"""Streaming evaluation of the sparse decoder, one cache-sized chunk of features at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from probinterp.feature_plan import FeaturePlan, chunks
from probinterp.likelihoods import Features, Likelihood, ObservedBatch
from probinterp.single_factor import ConstantFeatures, SingleFactorFeatures
from probinterp.threads import run_in_threads

Value = TypeVar("Value")

WIDTH_MULTIPLE = 16  # products with 15 columns run at a third of the speed of those with 16
MAX_THREADS = 8
PRODUCTS_PER_THREAD = 2**29  # multiplications from which a share of its own is faster
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

    def share(self) -> Inputs:
        """Gradients for some of the features: zeros where features add up, else these tensors."""
        weights = self.weights._replace(
            first=torch.zeros_like(self.weights.first),
            second=torch.zeros_like(self.weights.second),
            second_bias=torch.zeros_like(self.weights.second_bias),
        )
        return self._replace(z=torch.zeros_like(self.z), weights=weights)

    def add(self, share: Inputs) -> None:
        """Add the sums of other features."""
        self.z.add_(share.z)
        for mine, other in zip(self.weights[:3], share.weights[:3], strict=True):
            mine.add_(other)


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
    fixed: bool = False  # whether the chunk size was asked for

    def shares(self, inputs: Inputs) -> list[Schedule]:
        """Parts for threads to visit at the same time; just this one where that does not pay."""
        n_threads = min(torch.get_num_threads(), MAX_THREADS)
        n_products = self.plan.n_several * len(inputs.z) * inputs.weights.second.numel()
        if inputs.z.is_cuda or n_threads == 1:
            return [self]
        if n_products < n_threads * PRODUCTS_PER_THREAD:  # all threads work on every chunk
            return [self if self.fixed else replace(self, chunk_size=self.chunk_size * n_threads)]
        return [replace(self, plan=plan) for plan in self.plan.split(n_threads)]

    def visit(self, inputs: Inputs, gradients: Inputs) -> Iterator[tuple[Route, Features]]:
        """Yield every chunk with its route; the gradients are complete at exhaustion."""
        plan, n_rows = self.plan, max(1, len(inputs.z))
        if plan.n_several:
            several = SeveralFactorFeatures(inputs, gradients, self.chunk_size, self.dtype)
            for features in chunks(plan.several, self.chunk_size):
                yield several, features
            several.finish()
        n_light = max(1, PAIRS_PER_CHUNK // max(n_rows, 2 * len(inputs.weights.second)))
        for factor, group in plan.single:
            single = SingleFactorFeatures(inputs, gradients, factor)
            for features in chunks(group, n_light):
                yield single, features
            single.finish()
        constant = ConstantFeatures(inputs, gradients)
        for features in chunks(plan.empty, n_light):
            yield constant, features


def visit_all(
    schedule: Schedule, inputs: Inputs, work: Callable[[Schedule, Inputs], Value]
) -> tuple[Inputs, list[Value]]:
    """Let ``work(share, gradients)`` visit all features; return gradients and its values."""
    gradients = inputs.zeros()
    shares = schedule.shares(inputs)
    parts = [gradients, *(gradients.share() for _ in shares[1:])]

    def run(share: Schedule, part: Inputs) -> Value:
        with torch.no_grad(), _float32_ops(inputs.z):
            return work(share, part)

    values = run_in_threads([partial(run, *each) for each in zip(shares, parts, strict=True)])
    for part in parts[1:]:
        gradients.add(part)
    return gradients, values


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

        def work(share: Schedule, gradients: Inputs) -> None:
            for route, features in share.visit(inputs, gradients):
                eta[:, features] = route.forward(features).mT

        visit_all(schedule, inputs, work)
        return eta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_eta: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _inputs(ctx.saved_tensors)

        def work(share: Schedule, gradients: Inputs) -> None:
            for route, features in share.visit(inputs, gradients):
                route.forward(features)
                route.backward(d_eta[:, features].mT.contiguous())

        gradients, _ = visit_all(ctx.schedule, inputs, work)
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

        def work(share: Schedule, gradients: Inputs) -> Tensor:
            total = inputs.z.new_zeros(len(inputs.z))
            for route, features in share.visit(inputs, gradients):
                eta = route.forward(features).mT
                total += self.likelihood(eta, self.batch, features).log_prob(self.x[:, features])
            return total

        _, totals = visit_all(self.schedule, inputs, work)
        return torch.stack(totals).sum(0)

    def values_and_gradients(
        self, inputs: Inputs, row_weight: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Log likelihood of each row and the gradients of its (weighted) sum."""

        def work(share: Schedule, gradients: Inputs) -> list[Tensor]:
            sums = [inputs.z.new_zeros(len(inputs.z)), *map(torch.zeros_like, self.parameters)]
            for route, features in share.visit(inputs, gradients):
                eta = route.forward(features).mT.detach().requires_grad_()
                for total, value in zip(sums, self._chunk(eta, features, row_weight), strict=True):
                    if value is not None:
                        total += value
                assert eta.grad is not None
                route.backward(eta.grad.mT.contiguous())
            return sums

        gradients, sums = visit_all(self.schedule, inputs, work)
        values, *d_parameters = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        return values, (gradients.z, gradients.loadings, *gradients.weights, *d_parameters)

    def _chunk(
        self, eta: Tensor, features: Features, row_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Log likelihood of some features and its gradients by the parameters; sets eta.grad."""
        with torch.enable_grad():
            values = self.likelihood(eta, self.batch, features).log_prob(self.x[:, features])
        weight = torch.ones_like(values) if row_weight is None else row_weight
        eta.grad, *d_parameters = torch.autograd.grad(
            values, [eta, *self.parameters], weight, allow_unused=True
        )
        return values.detach(), *d_parameters


class _DecodedLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: _Task, ahead: bool, *tensors: Tensor) -> Tensor:
        ctx.task = task
        ctx.save_for_backward(*tensors)
        ctx.gradients = None
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
        _, gradients = ctx.task.values_and_gradients(_inputs(tensors), grad)
        return None, None, *gradients


def _inputs(tensors: tuple[Tensor, ...]) -> Inputs:
    return Inputs(tensors[0], tensors[1], DecoderWeights(*tensors[2:7]))
