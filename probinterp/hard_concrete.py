"""Values behind a gate that is stretched beyond its ends and cut off there."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints, register_kl
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from probinterp.spike_slab import SpikeSlab, gate_divergence

NO_SHAPE = torch.Size()
TEMPERATURE, LOWER, UPPER = 2 / 3, -0.1, 1.1
N_NODES = 24  # of Gauss-Legendre quadrature: moments of the gate to 1e-9


class HardConcrete(TorchDistribution):
    r"""A value times a hard-concrete gate.

    .. math:: z = \mu \min(1, \max(0, t)), \quad
        t = (\zeta - \gamma)\, \mathrm{sigmoid}\Big(\frac{\mathrm{logit}\, u + \log \alpha}{\beta}
        \Big) + \gamma, \quad u \sim U(0, 1)

    with :math:`\beta = 2/3`, :math:`\gamma = -0.1` and :math:`\zeta = 1.1`. Zero and :math:`\mu`
    have positive probabilities; :meth:`log_prob` is the density with respect to point masses there
    plus Lebesgue measure between them.

    Parameters
    ----------
    log_alpha
        Location :math:`\log \alpha` of the gate.
    loc
        Value :math:`\mu` of an open gate, not zero.

    References
    ----------
    Learning Sparse Neural Networks through L0 Regularization (Louizos et al., 2018).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "log_alpha": constraints.real,
        "loc": constraints.real,
    }
    support = constraints.real
    has_rsample = True

    def __init__(self, log_alpha: Tensor, loc: Tensor, validate_args: bool | None = None) -> None:
        self.log_alpha, self.loc = broadcast_all(log_alpha, loc)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(  # type: ignore[override]
        self, batch_shape: torch.Size, _instance: object = None
    ) -> HardConcrete:
        """Distribution with the same parameters and a larger batch shape."""
        log_alpha, loc = self.log_alpha.expand(batch_shape), self.loc.expand(batch_shape)
        return HardConcrete(log_alpha, loc, validate_args=False)

    @property
    def logits(self) -> Tensor:
        r"""Log odds of a value that is not zero, :math:`\log\alpha - \beta\log(-\gamma/\zeta)`."""
        return self.log_alpha - TEMPERATURE * math.log(-LOWER / UPPER)

    @property
    def inclusion(self) -> Tensor:
        """Probability of a value that is not zero."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """Mean, by quadrature over the distribution function of the gate."""
        return self.loc * self._gate_moment(1)

    @property
    def variance(self) -> Tensor:
        """Variance, by quadrature over the distribution function of the gate."""
        return self.loc.square() * (self._gate_moment(2) - self._gate_moment(1).square())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to point masses at 0 and at ``loc`` plus Lebesgue measure."""
        gate = value / self.loc
        inside = (gate > 0) & (gate < 1)
        share = (torch.where(inside, gate, 0.5) - LOWER) / (UPPER - LOWER)
        standard = TEMPERATURE * share.logit() - self.log_alpha
        density = logsigmoid(standard) + logsigmoid(-standard) + math.log(TEMPERATURE)
        density = density - share.log() - torch.log1p(-share)
        density = density - math.log(UPPER - LOWER) - self.loc.abs().log()
        ends = torch.where(gate <= 0, logsigmoid(-self.logits), logsigmoid(self._top()))
        return torch.where(inside, density, ends)

    def rsample(self, sample_shape: torch.Size = NO_SHAPE) -> Tensor:  # type: ignore[override]
        """Draw by the formula of the class."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        noise = torch.logit(u, eps=torch.finfo(u.dtype).eps)
        stretched = ((noise + self.log_alpha) / TEMPERATURE).sigmoid() * (UPPER - LOWER) + LOWER
        return self.loc * stretched.clamp(0, 1)

    def _top(self) -> Tensor:
        """Log odds of a gate that is fully open."""
        return self.log_alpha - TEMPERATURE * math.log((1 - LOWER) / (UPPER - 1))

    def _gate_moment(self, order: int) -> Tensor:
        """Moment of the gate, the integral of k t^(k-1) P(gate > t) over (0, 1)."""
        nodes, weights = np.polynomial.legendre.leggauss(N_NODES)
        total = torch.zeros_like(self.loc)
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            share = (t - LOWER) / (UPPER - LOWER)
            above = (self.log_alpha - TEMPERATURE * math.log(share / (1 - share))).sigmoid()
            total = total + weight * order * t ** (order - 1) * above
        return total


@register_kl(HardConcrete, SpikeSlab)
def _kl_hard_concrete(p: HardConcrete, q: SpikeSlab) -> Tensor:
    """Gates against gates, and the value, a point, at minus its log density but for a constant."""
    if not isinstance(q.slab, Normal):
        raise NotImplementedError
    cost = ((p.loc - q.slab.loc) / q.slab.scale).square() / 2
    return gate_divergence(p.logits, q.logits) + p.inclusion * cost
