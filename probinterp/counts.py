"""Distributions of count vectors, exact in single precision and lean on sparse data."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

BLOCK = 2**17  # entries of a matrix that are worked on at a time, in the cache
EXACT = 40.0  # softplus(x) = x from here on in double precision; torch's 20 is 2e-9 off


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
        shape = torch.broadcast_shapes(inverse_dispersion.shape, log_mean.shape[-1:])
        self.log_mean, self.inverse_dispersion = log_mean, inverse_dispersion.expand(shape)
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
        if value.is_cuda:
            terms = _dense_log_prob(log_mean, self.inverse_dispersion, value)
            return terms.sum(-1).to(log_mean.dtype)
        return _SparseLogProb.apply(log_mean, self.inverse_dispersion, value)

    def feature_log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each count of ``value`` (..., G), the same shape."""
        terms = _dense_log_prob(self.log_mean, self.inverse_dispersion, value)
        return terms.to(self.log_mean.dtype)

    def marginals(self) -> TorchDistribution:
        """Distribution of every count, batch shape (..., G)."""
        logits = self.log_mean - self.inverse_dispersion.log()
        return dist.NegativeBinomial(self.inverse_dispersion, logits=logits, validate_args=False)


def _dense_log_prob(log_mean: Tensor, dispersion: Tensor, value: Tensor) -> Tensor:
    """Log probability of every entry in double precision."""
    r, x = dispersion.double(), value.double()
    logits = log_mean.double() - r.log()
    terms = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    return terms + x * logits - (x + r) * softplus(logits, threshold=EXACT)


class _SparseLogProb(torch.autograd.Function):
    r"""Log probability summed over features, log-gamma terms at non-zero counts only.

    With :math:`l = \log\mu - \log r` and :math:`s = \mathrm{sigmoid}(l)`, a zero count
    contributes :math:`-r\,\mathrm{softplus}(l)`, with the derivatives :math:`-r s` by the log mean
    and :math:`s - \mathrm{softplus}(l)` by r; the other counts contribute :func:`_count_terms`.
    """

    @staticmethod
    def forward(ctx: Any, log_mean: Tensor, dispersion: Tensor, value: Tensor) -> Tensor:
        ctx.shape, n_features = log_mean.shape, log_mean.shape[-1]
        if dispersion.dim() > 1:
            dispersion = dispersion.expand(ctx.shape).reshape(-1, n_features)
        log_mean = log_mean.reshape(-1, n_features).contiguous()
        value = value.reshape(-1)
        flat = value.nonzero().squeeze(1)  # where the non-zero counts stand in the batch
        row = flat.div(n_features, rounding_mode="floor")
        at_r = flat - row * n_features if dispersion.dim() == 1 else flat
        soft = _softplus_of_difference(log_mean, dispersion.log())
        soft.view(-1).index_fill_(0, flat, 0.0)
        counts, means = (t.index_select(0, flat) for t in (value, log_mean.view(-1)))
        terms = _count_terms(means, dispersion.view(-1), at_r, counts)
        values, d_log_mean, d_dispersion = (term.to(soft.dtype) for term in terms)
        total = torch.linalg.vecdot(soft, dispersion).neg_().index_add_(0, row, values)
        ctx.save_for_backward(log_mean, soft, dispersion, flat, row, at_r, d_log_mean, d_dispersion)
        return total.view(ctx.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        log_mean, soft, dispersion, flat, row, at_r, d_log_mean, d_dispersion = ctx.saved_tensors
        weight = grad.reshape(-1)
        here, by_r = weight.index_select(0, row), None
        sigmoid = torch.sub(log_mean, dispersion.log()).sigmoid_()
        sigmoid.view(-1).index_fill_(0, flat, 0.0)
        if ctx.needs_input_grad[1]:
            if dispersion.dim() == 1:
                by_r = weight @ (sigmoid - soft)
            else:
                by_r = (sigmoid - soft) * weight.unsqueeze(-1)
            by_r.view(-1).index_add_(0, at_r, d_dispersion * here)
            by_r = by_r if by_r.dim() == 1 else by_r.view(ctx.shape)
        by_mean = sigmoid.mul_(dispersion).mul_(-weight.unsqueeze(-1))
        by_mean.view(-1).index_copy_(0, flat, d_log_mean * here)
        return by_mean.view(ctx.shape), by_r, None


def _count_terms(
    log_mean: Tensor, dispersion: Tensor, at_r: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log probability of non-zero counts and its derivatives by the log mean and by r.

    ``at_r`` says where the r of each count stands in ``dispersion``. Double precision: the
    differences of log-gamma and of digamma functions cancel for large r and x.
    """
    table = dispersion.double()
    functions = (table, table.log(), table.lgamma(), table.digamma())
    r, log_r, lgamma_r, digamma_r = (f.index_select(0, at_r) for f in functions)
    x, logits = count.double(), log_mean.double() - log_r
    n, soft = x + r, softplus(logits, threshold=EXACT)
    value = torch.lgamma(n) - lgamma_r - torch.lgamma(x + 1) + x * logits - n * soft
    by_mean = x - n * logits.sigmoid()
    return value, by_mean, torch.digamma(n) - digamma_r - soft - by_mean / r


def _softplus_of_difference(log_mean: Tensor, log_r: Tensor) -> Tensor:
    """Return log(1 + exp(log_mean - log_r)) to two units in the last place.

    With l the difference, e = exp(-|l|) and u = 1 + e rounded, log(1 + e) is
    log(u) + (e - (u - 1)) / u: a quarter of the time of torch's. Blocks of rows stay in the cache
    and share their scratch; fresh memory for each step would take longer than the arithmetic.
    """
    soft = torch.empty_like(log_mean)
    n_rows = max(1, BLOCK // max(1, log_mean.shape[-1]))
    scratch = [torch.empty_like(log_mean[:n_rows]) for _ in range(3)]
    split = (t.split(n_rows) for t in (log_mean, log_r.expand_as(log_mean), soft))
    for mean, r, result in zip(*split, strict=True):
        logits, small, other = (t[: len(mean)] for t in scratch)
        torch.sub(mean, r, out=logits)
        torch.abs(logits, out=small).neg_().exp_()
        torch.add(small, 1.0, out=result)
        small.sub_(torch.sub(result, 1.0, out=other)).div_(result)
        result.log_().add_(small).add_(logits.clamp_min_(0.0))
    return soft


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

    def marginals(self) -> TorchDistribution:
        """Distribution of every count given the total of its row, batch shape (..., G)."""
        total = self.total.unsqueeze(-1).expand(self.logits.shape)
        return dist.Binomial(total, probs=self.logits.exp(), validate_args=False)


class RoundedLogNormal(TorchDistribution):
    r"""Counts whose shifted logarithm is normal, rounded to whole numbers.

    .. math:: y_j \sim N(\eta_j, \sigma_j^2), \quad
        x_j = \mathrm{round}\big(s\,\max(e^{y_j} - 1, 0)\big)

    This is what a Gaussian model of :math:`\log(1 + x / s)` says about the counts themselves, so
    such a model and a count model can be compared by log probability.

    Parameters
    ----------
    loc
        Mean of y, shape (..., G).
    scale
        Standard deviation of y, positive; broadcasts against ``loc``, usually (G,).
    size_factor
        Relative library size s, shape (...).
    validate_args
        As in ``torch.distributions``.

    Notes
    -----
    ``mean`` and ``variance`` are those before rounding.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, loc: Tensor, scale: Tensor, size_factor: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, self.size_factor = loc, scale, size_factor.unsqueeze(-1)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RoundedLogNormal:
        """Distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        size_factor = self.size_factor.squeeze(-1).expand(shape)
        return RoundedLogNormal(
            self.loc.expand(shape + self.event_shape), self.scale, size_factor, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log probability, :math:`\log[\Phi(u) - \Phi(l)]` summed over features."""
        return self.feature_log_prob(value).sum(-1)

    def feature_log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each count of ``value`` (..., G), the same shape."""
        upper = self._standardised(value + 0.5)
        lower = self._standardised((value - 0.5).clamp_min(0.0))
        # work in the tail where both are small: Phi(u) - Phi(l) = Phi(-l) - Phi(-u)
        flipped = lower > 0
        high = torch.special.log_ndtr(torch.where(flipped, -lower, upper))
        low = torch.special.log_ndtr(torch.where(flipped, -upper, lower))
        between = high + torch.log1p(-(low - high).clamp(max=-1e-7).exp())
        at_zero = torch.special.log_ndtr(upper)
        return torch.where(value == 0, at_zero, between)

    def feature_cdf(self, value: Tensor) -> Tensor:
        """Distribution function at each entry of ``value`` (..., G), the same shape."""
        inside = torch.special.ndtr(self._standardised(value.clamp_min(0.0).floor() + 0.5))
        return torch.where(value < 0, 0.0, inside)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            y = self.loc + self.scale * noise
            return (self.size_factor * torch.expm1(y).clamp_min(0.0)).round()

    @property
    def mean(self) -> Tensor:
        r""":math:`s\,E[\max(e^y - 1, 0)]`, shape (..., G)."""
        first, _ = self._moments()
        return (self.size_factor * first).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        r""":math:`\max(s^2\,\mathrm{Var}[\max(e^y - 1, 0)],\ f (1 - f))`, shape (..., G).

        f is the fractional part of the mean: no integer has a smaller variance. It decides for
        rare counts, whose variance comes from rounding. Never below the square of the machine
        epsilon, so that residuals of counts that are all but impossible stay finite.
        """
        first, second = self._moments()
        fraction = (self.size_factor * first).frac()
        spread = self.size_factor.square() * (second - first.square())
        smallest = torch.finfo(self.loc.dtype).eps ** 2
        return torch.maximum(spread, fraction * (1 - fraction)).clamp_min(smallest).to(self.loc)

    def _standardised(self, count: Tensor) -> Tensor:
        return (torch.log1p(count / self.size_factor) - self.loc) / self.scale

    def _moments(self) -> tuple[Tensor, Tensor]:
        # float64: differences of nearly equal numbers, negative in float32 for rare counts
        loc, scale = self.loc.double(), self.scale.double()
        variance, ratio = scale.square(), loc / scale
        at = [torch.special.ndtr(ratio + k * scale) for k in range(3)]
        once = (loc + variance / 2).exp()
        twice = (2 * loc + 2 * variance).exp()
        first = once * at[1] - at[0]
        return first, twice * at[2] - 2 * once * at[1] + at[0]
