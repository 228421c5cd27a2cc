"""Spike-and-slab distributions: values that are exactly zero or come from a continuous slab."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, constraints, kl_divergence, register_kl
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, softplus

NO_SHAPE = torch.Size()
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
SERIES_BELOW = -30.0  # 1 - a r - r^2 has lost six digits there, Phi has 198 zeros
TAIL_BELOW = -30.0  # the normal quantile function comes to its end
TEMPERATURE = 2 / 3


class PositiveNormal(TorchDistribution):
    r"""Normal distribution truncated to positive values.

    .. math:: p(z) = \frac{\phi((z - \mu) / s)}{s\, \Phi(\mu / s)}, \quad z > 0

    Its moments follow from the hazard :math:`\lambda = \phi(a) / \Phi(a)` at :math:`a = \mu / s`:
    the mean is :math:`\mu + s \lambda` and the variance
    :math:`s^2 (1 - a \lambda - \lambda^2)`. They are computed in double precision and, far below
    zero, by the expansion of Mills' ratio, and are accurate for every a. With
    :math:`\mu = 0` it is the half-normal distribution.

    Parameters
    ----------
    loc, scale
        Location :math:`\mu` and scale s > 0 of the normal before truncation.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.positive
    has_rsample = True

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> PositiveNormal:
        """Distribution with the same parameters and a larger batch shape."""
        return PositiveNormal(
            self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False
        )

    @cached_property
    def _standard(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and expected log density, the last but for a constant, for scale one."""
        mean, variance, log_density = _StandardMoments.apply(self.loc / self.scale)
        return mean, variance, log_density

    @property
    def mean(self) -> Tensor:
        r""":math:`\mu + s \lambda`."""
        return self.scale * self._standard[0]

    @property
    def variance(self) -> Tensor:
        r""":math:`s^2 (1 - a \lambda - \lambda^2)`."""
        return self.scale.square() * self._standard[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, minus infinity where the value is not positive."""
        standard = (value - self.loc) / self.scale
        normalizer = torch.special.log_ndtr(self.loc / self.scale) + self.scale.log()
        density = -0.5 * standard.square() - HALF_LOG_TAU - normalizer
        return density.masked_fill(value <= 0, -torch.inf)

    def entropy(self) -> Tensor:
        """Differential entropy."""
        return self.scale.log() + HALF_LOG_TAU - self._standard[2]

    def rsample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        r"""Draw by inverting the distribution function.

        .. math:: z = \mu - s\, \Phi^{-1}(u\, \Phi(a)), \quad u \sim U(0, 1)
        """
        shape = self._extended_shape(sample_shape)
        a = (self.loc / self.scale).double().expand(shape)
        u = torch.rand(shape, dtype=a.dtype, device=a.device).clamp_min(2.0**-60)
        near = a.clamp_min(TAIL_BELOW)
        mass = 0.5 * torch.special.erfc(-near / 2**0.5)  # ndtr is zero below -10
        standard = near - torch.special.ndtri(u * mass)
        standard = torch.where(a < TAIL_BELOW, _far_draw(-a.clamp_max(TAIL_BELOW), u), standard)
        smallest = torch.finfo(self.scale.dtype).tiny
        return (self.scale * standard.to(self.scale.dtype)).clamp_min(smallest)


def _far_draw(t: Tensor, u: Tensor) -> Tensor:
    """Excess over t of a standard normal value above t >= 30, with probability u of a larger one.

    One step of the fixed point of x^2 = t^2 - 2 log u - 2 log(x / t), accurate to t^-4.
    """
    gap = -2 * u.log()
    x = (t.square() + gap).sqrt()
    gap = gap - 2 * (x / t).log()
    return gap / ((t.square() + gap).sqrt() + t)


class _StandardMoments(torch.autograd.Function):
    r"""Mean r, variance v and :math:`c = E \log p + \frac12 \log 2\pi` of a positive normal.

    Its location is a, its scale one. The derivatives are exact: :math:`r' = v`,
    :math:`v' = \lambda (r^2 - v)` and :math:`c' = -\lambda (v + r^2) / 2`.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = a.double().clamp_min(SERIES_BELOW)
        mass = torch.special.erfc(near * -(0.5**0.5)).mul_(0.5)
        hazard = near.square().mul_(-0.5).sub_(HALF_LOG_TAU).exp_().div_(mass)
        mean = near + hazard
        variance = (1 - hazard * mean).to(a.dtype)
        mass, hazard, mean = (value.to(a.dtype) for value in (mass, hazard, mean))
        far, right = a < SERIES_BELOW, a > 0
        small = -1 / a.clamp_max(SERIES_BELOW)
        square = small * small
        mean = torch.where(far, small * (1 - square * (2 - square * (10 - 74 * square))), mean)
        tail = square * (1 - square * (6 - square * (50 - 518 * square)))
        variance = torch.where(far, tail, variance)
        hazard = torch.where(far, mean - a, hazard)
        # log Phi(a) to the right of zero, log lambda to the left: neither argument is ever extreme
        log = torch.where(right, mass, hazard).log()
        density = 0.5 * a * torch.where(right, hazard, mean) - 0.5
        density = density + torch.where(right, -log, log + HALF_LOG_TAU)
        ctx.save_for_backward(mean, variance, hazard)
        return mean, variance, density

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor, d_variance: Tensor, d_density: Tensor) -> Tensor:
        mean, variance, hazard = ctx.saved_tensors
        square = mean.square()
        return (
            d_mean * variance
            + d_variance * hazard * (square - variance)
            - d_density * 0.5 * hazard * (variance + square)
        )


class SpikeSlab(TorchDistribution):
    r"""Zero with probability :math:`1 - \pi`, else a value of the slab.

    .. math:: z \sim (1 - \pi)\, \delta_0 + \pi\, \mathrm{Slab}

    The density is taken with respect to a point mass at zero plus Lebesgue measure. Draws of
    :meth:`rsample` follow this distribution exactly; their gradient with respect to the gate is
    that of a concrete relaxation (a biased one).

    Parameters
    ----------
    logits
        :math:`\mathrm{logit}\, \pi`.
    slab
        Distribution of values that are not zero, with ``loc``, ``scale`` and an empty event shape:
        ``Normal(loc, scale)`` or :class:`PositiveNormal`.
    temperature
        Temperature T > 0 of the relaxed gate
        :math:`\mathrm{sigmoid}((\mathrm{logit}\, u + \mathrm{logit}\, \pi) / T)`.

    References
    ----------
    The Concrete Distribution (Maddison et al., 2017); Estimating or Propagating Gradients Through
    Stochastic Neurons (Bengio et al., 2013).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        slab: Distribution,
        temperature: float = TEMPERATURE,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(logits.shape, slab.batch_shape)
        self.logits, self.slab, self.temperature = logits.expand(shape), slab, temperature
        super().__init__(shape, validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> SpikeSlab:
        """Distribution with the same parameters and a larger batch shape."""
        logits, slab = self.logits.expand(batch_shape), self.slab.expand(batch_shape)
        return SpikeSlab(logits, slab, self.temperature, validate_args=False)

    @property
    def inclusion(self) -> Tensor:
        r"""Probability of a value that is not zero, :math:`\pi`."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        r""":math:`\pi m` with the mean m of the slab."""
        return self.inclusion * self.slab.mean

    @property
    def variance(self) -> Tensor:
        r""":math:`\pi v + \pi (1 - \pi) m^2` with the moments of the slab."""
        on, off = self.inclusion, (-self.logits).sigmoid()
        return on * (self.slab.variance + off * self.slab.mean.square())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to a point mass at zero plus Lebesgue measure."""
        zero = value == 0
        inside = self.slab.log_prob(torch.where(zero, 1.0, value))
        return torch.where(zero, logsigmoid(-self.logits), logsigmoid(self.logits) + inside)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw values; of the slab only where the gate is open, which is seldom."""
        inclusion = self.inclusion.expand(self._extended_shape(sample_shape))
        is_open = torch.rand_like(inclusion) < inclusion
        slab: Any = self.slab
        loc, scale = (value.expand(inclusion.shape)[is_open] for value in (slab.loc, slab.scale))
        values = torch.zeros_like(inclusion)
        values[is_open] = type(slab)(loc, scale, validate_args=False).sample()
        return values

    def rsample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw values; the gradient of the gate is that of its relaxation."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        noise = torch.logit(u, eps=torch.finfo(u.dtype).eps)
        relaxed = ((noise + self.logits) / self.temperature).sigmoid()
        gate = (relaxed > 0.5).to(relaxed) + (relaxed - relaxed.detach())
        return gate * self.slab.rsample(sample_shape).expand(shape)


def gate_divergence(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL divergence of Bernoulli distributions, from their logits."""
    closed = softplus(prior_logits) - softplus(logits)  # log (1 - pi) - log (1 - rho)
    return logits.sigmoid() * (logits - prior_logits) + closed


@register_kl(SpikeSlab, SpikeSlab)
def _kl_spike_slab(p: SpikeSlab, q: SpikeSlab) -> Tensor:
    return gate_divergence(p.logits, q.logits) + p.inclusion * kl_divergence(p.slab, q.slab)


@register_kl(PositiveNormal, PositiveNormal)
def _kl_positive_normal(p: PositiveNormal, q: PositiveNormal) -> Tensor:
    second = p.variance + (p.mean - q.loc).square()
    cross = second / (2 * q.scale.square()) + torch.special.log_ndtr(q.loc / q.scale)
    return (q.scale / p.scale).log() + p._standard[2] + cross
