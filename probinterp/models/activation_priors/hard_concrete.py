"""Signed codes behind hard-concrete gates."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from probinterp.hard_concrete import HardConcrete as GatedValue
from probinterp.models.activation_priors.gates import GatedPrior
from probinterp.models.activation_priors.interface import CodeMoments
from probinterp.spike_slab import SpikeSlab, gate_divergence


class HardConcrete(GatedPrior):
    r"""The pre-activation times a random hard-concrete gate.

    The bound has to be sampled. The value of an open gate is a point estimate under a standard
    normal prior,

    .. math:: \mathrm{KL}(P(z \neq 0) \,\|\, \rho) + P(z \neq 0)\, h^2 / 2.

    A baseline for the closed form of :class:`BernoulliGaussian`. See :class:`GatedPrior`
    for the parameters.

    References
    ----------
    Learning Sparse Neural Networks through L0 Regularization (Louizos et al., 2018).
    """

    is_analytic = False

    def posterior_by_code(self, pre: Tensor) -> GatedValue:
        """Posterior of every code by itself, batch shape (B, L, H)."""
        return GatedValue(self.gate_logits(pre), pre)

    def posterior(self, pre: Tensor) -> TorchDistribution:
        """Posterior of the codes, batch shape (B,), event shape (L, H)."""
        law: TorchDistribution = self.posterior_by_code(pre).to_event(2)
        return law

    def prior(self) -> TorchDistribution:
        """Prior of one token's codes, event shape (L, H)."""
        law: TorchDistribution = self._prior().to_event(2)
        return law

    def moments(self, pre: Tensor) -> CodeMoments:
        """Moments of the codes, and the two parts of their KL divergence."""
        q, p = self.posterior_by_code(pre), self._prior()
        gate = gate_divergence(q.logits, p.logits)
        slab = kl_divergence(q, p) - gate
        return CodeMoments(q.mean, q.variance, gate.sum(2), slab.sum(2))

    def inclusion(self, pre: Tensor) -> Tensor:
        """Probability of a code that is not zero, (B, L, H)."""
        return self.posterior_by_code(pre).inclusion

    def hard(self, pre: Tensor) -> Tensor:
        """Mean of the codes that are more likely than not to be active, (B, L, H)."""
        q = self.posterior_by_code(pre)
        return torch.where(q.logits > 0, q.mean / q.inclusion, 0.0)

    def _prior(self) -> SpikeSlab:
        return SpikeSlab(self.rate.logit(), dist.Normal(torch.zeros_like(self.rate), 1.0))
