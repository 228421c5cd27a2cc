"""Distributions of count vectors, exact in single precision and lean on sparse data."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus


class NegativeBinomial(TorchDistribution):
    r"""Independent negative binomial counts of G features, in terms of the mean.

    .. math:: x_j \sim \mathrm{NB}(\mu_j, r_j), \quad E = \mu_j, \quad
        \mathrm{Var} = \mu_j + \mu_j^2 / r_j, \quad P(0) = (r_j / (r_j + \mu_j))^{r_j}

    Parameters
    ----------
    log_mean
        Logarithm of the mean, shape (..., G).
    inverse_dispersion
        r > 0, called ``total_count`` in torch, ``size`` in R and theta elsewhere; its shape
        broadcasts against that of ``log_mean``, usually (G,).
    validate_args
        As in ``torch.distributions``.

    Notes
    -----
    The log probability is computed from ``log_mean``, never through probabilities. With
    :math:`l = \log\mu - \log r` it is :math:`-r\,\mathrm{softplus}(l)` at x = 0; everything else,
    the log-gamma terms included, is needed at the non-zero counts only and is evaluated there in
    double precision, because :math:`\log\Gamma(x + r) - \log\Gamma(r)` cancels in single
    precision when r or x is large. On a GPU the same terms are evaluated at every entry: finding
    the non-zeros would make the host wait.
    """

    arg_constraints = {
        "log_mean": constraints.real_vector,
        "inverse_dispersion": constraints.independent(constraints.positive, 1),
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, log_mean: Tensor, inverse_dispersion: Tensor, validate_args: bool | None = None
    ) -> None:
        self.log_mean = log_mean
        self.inverse_dispersion = inverse_dispersion
        super().__init__(log_mean.shape[:-1], log_mean.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean counts, shape (..., G)."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance of the counts, shape (..., G)."""
        return self.mean + self.mean.square() / self.inverse_dispersion

    def expand(self, batch_shape: Any, _instance: Any = None) -> NegativeBinomial:
        """Repeat the distribution to ``batch_shape``."""
        shape = torch.Size(batch_shape) + self.event_shape
        return NegativeBinomial(
            self.log_mean.expand(shape), self.inverse_dispersion, validate_args=False
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts as Poisson variables with gamma distributed rates."""
        shape = torch.Size(sample_shape) + self.log_mean.shape
        with torch.no_grad():
            dispersion = self.inverse_dispersion.expand(shape)
            rate = torch._standard_gamma(dispersion) * (self.mean / self.inverse_dispersion)
            return torch.poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value`` (..., G), summed over the features."""
        if self._validate_args:
            self._validate_sample(value)
        log_mean, value = torch.broadcast_tensors(self.log_mean, value)
        return _NegativeBinomialLogProb.apply(log_mean, self.inverse_dispersion, value)


class _NegativeBinomialLogProb(torch.autograd.Function):
    r"""Sum over features of the log probability, with both gradients from one pass.

    With :math:`s = \mathrm{sigmoid}(\log\mu - \log r)`:
    :math:`\partial_{\log\mu} = x - (x + r) s` and
    :math:`\partial_r = \psi(x + r) - \psi(r) - \mathrm{softplus}(l) - (x - (x + r) s) / r`.
    """

    @staticmethod
    def forward(ctx: Any, log_mean: Tensor, dispersion: Tensor, value: Tensor) -> Tensor:
        logits = log_mean - dispersion.log()
        soft = softplus(logits)
        zero_terms = soft * -dispersion
        at = _nonzero_columns(value)
        r = dispersion.expand_as(value)
        x, r, exact = (v[at].double() for v in (value, r, logits))
        exact = x * exact - (x + r) * softplus(exact)
        exact += torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        ctx.save_for_backward(logits, soft, dispersion, value)
        if at[0] is ...:
            return exact.sum(-1).to(log_mean.dtype)
        zero_terms[at] = exact.to(log_mean.dtype)
        return zero_terms.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        logits, soft, dispersion, value = ctx.saved_tensors
        weight = grad.unsqueeze(-1)
        d_log_mean = value - (value + dispersion) * logits.sigmoid()
        d_dispersion = None
        if ctx.needs_input_grad[1]:
            slope = torch.digamma(value + dispersion) - torch.digamma(dispersion)
            slope = slope - soft - d_log_mean / dispersion
            d_dispersion = (slope * weight).sum_to_size(dispersion.shape)
        return d_log_mean * weight, d_dispersion, None


def _nonzero_columns(value: Tensor) -> tuple[Any, ...]:
    return (...,) if value.is_cuda else value.nonzero(as_tuple=True)


class MultinomialCounts(TorchDistribution):
    r"""Multinomial counts with a total of its own for every row.

    .. math:: \log p(x) = \log\Gamma(n + 1) - \sum_j \log\Gamma(x_j + 1) + \sum_j x_j \log p_j,
        \quad p = \mathrm{softmax}(\text{logits})

    Parameters
    ----------
    logits
        Unnormalised log probabilities, shape (..., G).
    total
        Number of counts n in each row, shape (...); ``sample``, ``mean`` and ``variance`` use it,
        ``log_prob`` is conditional on the total of the counts that it is given.
    validate_args
        As in ``torch.distributions``.
    """

    arg_constraints = {"logits": constraints.real_vector, "total": constraints.nonnegative_integer}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, logits: Tensor, total: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        self.total = total.expand(logits.shape[:-1])
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected counts, shape (..., G)."""
        return self.total.unsqueeze(-1) * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        """Variance of every count, shape (..., G)."""
        return self.mean * -torch.expm1(self.logits)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MultinomialCounts:
        """Repeat the distribution to ``batch_shape``."""
        shape = torch.Size(batch_shape)
        logits = self.logits.expand(shape + self.event_shape)
        return MultinomialCounts(logits, self.total.expand(shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts by splitting the total in halves of the features, binomially."""
        shape = torch.Size(sample_shape) + self.logits.shape
        n_features = shape[-1]
        depth = math.ceil(math.log2(n_features)) if n_features > 1 else 0
        with torch.no_grad():
            leaves = torch.nn.functional.pad(self.logits.exp(), (0, 2**depth - n_features))
            levels = [leaves]
            for _ in range(depth):
                levels.append(levels[-1].unflatten(-1, (-1, 2)).sum(-1))
            counts = self.total.unsqueeze(-1).expand(*shape[:-1], 1).to(leaves.dtype)
            for probabilities, parents in zip(levels[-2::-1], levels[:0:-1], strict=True):
                tiny = torch.finfo(leaves.dtype).tiny
                left = probabilities[..., ::2] / parents.clamp_min(tiny)
                counts = counts.contiguous()
                drawn = torch.binomial(counts, left.clamp(max=1.0).expand(counts.shape))
                counts = torch.stack([drawn, counts - drawn], -1).flatten(-2)
        return counts[..., :n_features]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``value`` (..., G) given their total."""
        if self._validate_args:
            self._validate_sample(value)
        coefficient = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
        return coefficient + (value * self.logits).sum(-1)
