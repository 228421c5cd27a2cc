"""What spike-and-slab codes have in common: a slab behind the gate, closed-form moments."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from probinterp.models.activation_priors.gates import GatedPrior
from probinterp.models.activation_priors.interface import CodeMoments
from probinterp.spike_slab import SpikeSlab, gate_divergence

LOG_SCALE = -1.5


class EachCode(NamedTuple):
    """Moments of each code and its KL divergences to the prior, all of one shape."""

    mean: Tensor
    variance: Tensor
    kl_gate: Tensor
    kl_slab: Tensor


class SpikeSlabPrior(GatedPrior):
    r"""Codes that are zero unless a gate is open, and then come from a slab.

    .. math:: z_i \sim (1 - \rho_i)\, \delta_0 + \rho_i\, \mathrm{Slab}(0, 1), \quad
        q(z_i \mid h_i) = (1 - \pi_i)\, \delta_0 + \pi_i\, \mathrm{Slab}(h_i, s_i)

    The scales s are learned for every layer and latent. That of the prior is one: scaling codes
    up and decoders down leaves the bound as it is. See :class:`GatedPrior` for the parameters.
    """

    log_scale: nn.Parameter

    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Make gates, rates and scales, (L, H) each."""
        super().allocate(n_layers, n_latents)
        self.log_scale = nn.Parameter(torch.full((n_layers, n_latents), LOG_SCALE))

    @abstractmethod
    def slab(self, loc: Tensor, scale: Tensor) -> Distribution:
        """Distribution of active codes around a location."""

    def posterior_by_code(self, pre: Tensor) -> SpikeSlab:
        """Posterior of every code by itself, batch shape (B, L, H)."""
        return SpikeSlab(self.gate_logits(pre), self.slab(pre, self.log_scale.exp()))

    def prior_by_code(self) -> SpikeSlab:
        """Prior of every code by itself, batch shape (L, H)."""
        return self._prior(self.rate)

    def posterior(self, pre: Tensor) -> TorchDistribution:
        """Posterior of the codes, batch shape (B,), event shape (L, H)."""
        law: TorchDistribution = self.posterior_by_code(pre).to_event(2)
        return law

    def prior(self) -> TorchDistribution:
        """Prior of one token's codes, event shape (L, H)."""
        law: TorchDistribution = self.prior_by_code().to_event(2)
        return law

    def moments(self, pre: Tensor) -> CodeMoments:
        """Moments and KL divergences in closed form."""
        each = self._each(self.posterior_by_code(pre), self.rate)
        return CodeMoments(each.mean, each.variance, each.kl_gate.sum(2), each.kl_slab.sum(2))

    def moments_of(self, pre: Tensor, indices: Tensor) -> EachCode:
        """Moments of selected codes alone, (B, L, k), with pre-activations (B, L, H)."""

        def at(parameter: Tensor) -> Tensor:
            return parameter.expand(pre.shape).gather(2, indices)

        loc = at(pre)
        logits = at(self.gate_slope) * loc + at(self.gate_offset)
        law = SpikeSlab(logits, self.slab(loc, at(self.log_scale).exp()))
        return self._each(law, at(self.rate))

    def hard(self, pre: Tensor) -> Tensor:
        r""":math:`1[\pi > 1/2]\, E[z \mid z \neq 0]`, (B, L, H)."""
        q = self.posterior_by_code(pre)
        return torch.where(q.logits > 0, q.slab.mean, 0.0)

    def _prior(self, rate: Tensor) -> SpikeSlab:
        return SpikeSlab(rate.logit(), self.slab(torch.zeros_like(rate), torch.ones_like(rate)))

    def _each(self, q: SpikeSlab, rate: Tensor) -> EachCode:
        p = self._prior(rate)
        slab = q.inclusion * kl_divergence(q.slab, p.slab)
        return EachCode(q.mean, q.variance, gate_divergence(q.logits, p.logits), slab)
