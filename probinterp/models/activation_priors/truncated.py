"""Spike-and-slab codes of which few are ever open."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from probinterp.models.activation_priors.interface import ActivationPrior, CodeMoments
from probinterp.models.activation_priors.spike_slab import SpikeSlabPrior
from probinterp.models.annealing import require_share
from probinterp.models.base import require_positive
from probinterp.spike_slab import SpikeSlab

CLOSED = -100.0  # log odds of a gate that is left out


class Truncated(ActivationPrior):
    r"""The posterior of another prior with all but its K likeliest gates closed.

    .. math:: \pi_i = 0, \quad \mathrm{KL}_i = -\log(1 - \rho_i)

    for every latent whose gate is not among the K largest log odds of its token and layer. That is
    still a posterior, so the bound stays a bound, and the cost is that of K codes. Latents that
    are left out get no gradient; in training K therefore starts at twice its value and shrinks
    linearly.

    Parameters
    ----------
    prior
        Prior and posterior to truncate.
    k
        K, about four times the number of active codes that is wanted.
    shrink
        Share of the planned steps over which K shrinks.
    """

    start = "normal"

    def __init__(self, prior: SpikeSlabPrior, k: int, *, shrink: float = 0.5) -> None:
        super().__init__()
        if not isinstance(prior, SpikeSlabPrior):
            raise TypeError(
                f"prior must be a BernoulliGaussian or BernoulliTruncatedNormal, "
                f"got {type(prior).__name__}."
            )
        require_positive(k=k)
        require_share(shrink=shrink)
        self.whole, self.k, self.shrink = prior, k, shrink
        self.n_active = self.k_now = k

    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Make the parameters of the prior."""
        if self.k > n_latents:
            raise ValueError(f"k must be at most n_latents = {n_latents}, got {self.k}.")
        self.whole.allocate(n_layers, n_latents)

    def select(self, pre: Tensor) -> Tensor:
        """The latents with the K likeliest gates, (B, L, K)."""
        logits = self.whole.gate_logits(pre.detach())
        k = self.k_now if self.training else self.k
        return logits.topk(min(k, pre.shape[2]), dim=2, sorted=False).indices

    def moments(self, pre: Tensor) -> CodeMoments:
        """Moments and KL divergences, computed for K codes a token and layer."""
        indices = self.select(pre)
        each = self.whole.moments_of(pre, indices)
        closed = -logsigmoid(-self.whole.rate.logit())
        elsewhere = closed.sum(1) - closed.expand(pre.shape).gather(2, indices).sum(2)
        mean, variance = (
            torch.zeros_like(pre).scatter(2, indices, value) for value in (each.mean, each.variance)
        )
        gate = each.kl_gate.sum(2) + elsewhere
        return CodeMoments(mean, variance, gate, each.kl_slab.sum(2))

    def hard(self, pre: Tensor) -> Tensor:
        """The sparse code of the prior without the latents that are left out."""
        return self._kept(pre, self.whole.hard(pre), 0.0)

    def inclusion(self, pre: Tensor) -> Tensor:
        """Probabilities of the gates, zero for those left out."""
        return self._kept(pre, self.whole.inclusion(pre), 0.0)

    def posterior(self, pre: Tensor) -> TorchDistribution:
        """Posterior of the codes, batch shape (B,), event shape (L, H)."""
        q = self.whole.posterior_by_code(pre)
        law: TorchDistribution = SpikeSlab(self._kept(pre, q.logits, CLOSED), q.slab).to_event(2)
        return law

    def prior(self) -> TorchDistribution:
        """Prior of one token's codes, event shape (L, H)."""
        return self.whole.prior()

    def anneal(self, progress: float) -> None:
        """Shrink K."""
        left = max(0.0, 1 - progress / self.shrink) if self.shrink else 0.0
        self.k_now = round(self.k * (1 + left))

    def update(self, pre: Tensor, n_total: int, progress: float) -> None:
        """Let the prior rates follow the gates that are left."""
        if self.whole.learn_rate and progress >= self.whole.rate_warmup:
            self.whole.follow(self.inclusion(pre), n_total)

    def _kept(self, pre: Tensor, values: Tensor, otherwise: float) -> Tensor:
        kept = torch.zeros_like(pre, dtype=torch.bool).scatter(2, self.select(pre), True)
        return torch.where(kept, values, otherwise)
