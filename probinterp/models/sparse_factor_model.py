"""What models with a sparse decoder have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn

from probinterp.likelihoods import INITIAL_SCALE, GaussianLikelihood, Likelihood
from probinterp.models.annealing import require_share, warmup
from probinterp.models.base import OBS_SITE, Batch, ProbabilisticModel, observations
from probinterp.models.encoder import GaussianEncoder
from probinterp.models.spike_slab_loadings import ACTIVE_LOADING, SpikeSlabLoadings
from probinterp.nn import SparseDecoder


class SparseFactorModel(ProbabilisticModel):
    r"""Factors that reach features through sparse loadings and one network for all features.

    .. math:: z_i \sim p(z), \quad
              x_{ij} \mid z_i \sim p\big(x \mid h_j^\top f_\theta(w_j \odot z_i) + c_j\big)

    A model says what the prior of the factors and their amortised posterior are.

    Parameters
    ----------
    sparse
        The loadings W.
    decoder
        The network f, the heads h and the constants c.
    likelihood
        Distribution of the features.
    rates
        Spike and slab rate for each observation.
    start
        ``"random"`` or ``"components"``.
    kl_warmup, prune_after
        Shares of the planned steps.
    released
        Whether the objective is the loss of the authors' code.
    """

    kl_weight: Tensor
    encoder: GaussianEncoder

    def __init__(
        self,
        sparse: SpikeSlabLoadings,
        decoder: SparseDecoder,
        likelihood: Likelihood,
        *,
        rates: tuple[float, float],
        start: str,
        kl_warmup: float,
        prune_after: float | None,
        released: bool = False,
    ) -> None:
        super().__init__()
        require_share(kl_warmup=kl_warmup, prune_after=prune_after)
        if start not in ("random", "components"):
            raise ValueError(f'start must be "random" or "components", got {start!r}.')
        self.sparse, self.decoder, self.likelihood = sparse, decoder, likelihood
        self.rates_per_observation, self.start, self.released = rates, start, released
        self.kl_warmup, self.prune_after = kl_warmup, prune_after
        n_factors = sparse.weight.shape[1]
        self.register_buffer("kl_weight", torch.tensor(1 / n_factors if released else 1.0))

    @abstractmethod
    def factor_prior(self, batch: Batch) -> dist.TorchDistribution:
        """Prior of z, event shape (K,)."""

    @abstractmethod
    def factor_posterior(self, batch: Batch) -> dist.TorchDistribution:
        """Amortised posterior of z given the batch, batch shape (B,), event shape (K,)."""

    @abstractmethod
    def gate_of(self, batch: Batch) -> Tensor:
        """Which columns each observation has, (B, K) boolean."""

    @abstractmethod
    def weight_of(self, batch: Batch) -> Tensor | float:
        """How much each observation counts in the objective, (B,) or one number; 1 on average."""

    @abstractmethod
    def components(self, batch: Batch) -> Tensor:
        """Starting loadings from principal components of the batch, (G, K)."""

    def model(self, batch: Batch, n_total: int | None = None) -> None:
        """Generative program; sites ``W``, ``inclusion_rate``, ``z`` and ``x``."""
        with poutine.scale(scale=self._global_scale(batch, n_total)):
            loadings = self.sparse.sample()
            noise = self.likelihood.log_prior()
            if noise is not None:
                pyro.factor("likelihood_prior", noise)
        with observations(batch, n_total), poutine.scale(scale=self.weight_of(batch)):
            with poutine.scale(scale=self.kl_weight):
                z = pyro.sample("z", self.factor_prior(batch))
            support = self.sparse.known_support
            x = self.decoder.observe(z, loadings, self.likelihood, batch, support)
            pyro.sample(OBS_SITE, x, obs=batch.x)

    def guide(self, batch: Batch, n_total: int | None = None) -> None:
        """Point masses at the globals and the amortised posterior of ``z``."""
        with poutine.scale(scale=self._global_scale(batch, n_total)):
            self.sparse.guide()
        weight = self.weight_of(batch) * self.kl_weight
        with observations(batch, n_total), poutine.scale(scale=weight):
            pyro.sample("z", self.factor_posterior(batch))

    def decode(self, z: Tensor) -> Tensor:
        """Linear predictor of every feature from the masked factors, (N, G)."""
        return self.decoder(z, self.sparse.masked, self.sparse.known_support)

    def effect(self, z: Tensor, columns: Sequence[int]) -> Tensor:
        """What the factors ``columns`` change of the linear predictor, (N, G)."""
        without = z.clone()
        without[:, list(columns)] = 0
        return self.decode(z) - self.decode(without)

    @torch.no_grad()
    def initialize(self, batch: Batch, n_total: int) -> None:
        """Set the rates for ``n_total`` observations and the likelihood's starting values."""
        self.inspect(batch, n_total)
        spike, slab = self.rates_per_observation
        self.likelihood.initialize(batch)
        if not self.released:
            if self.start == "components":
                self.loadings.copy_(self.components(batch))
                self.decoder.heads.copy_(self.decoder.heads[0].expand_as(self.decoder.heads))
            location, scale = self.likelihood.linear_predictor_moments(batch)
            self.decoder.bias.copy_(location)
            self.decoder.heads.mul_(scale.unsqueeze(1))
        if self.released and isinstance(self.likelihood, GaussianLikelihood):
            n_features = len(self.loadings)
            self.likelihood.log_scale.add_(math.log(math.sqrt(n_features) / INITIAL_SCALE))
            self.likelihood.prior_variance.mul_(n_features)
        self.sparse.set_rates(spike * n_total, slab * n_total)

    def inspect(self, batch: Batch, n_total: int) -> None:  # noqa: B027
        """Refuse data that the model cannot be fitted to."""

    def anneal(self, progress: float) -> None:
        """Set the KL weight."""
        if not self.released:
            self.kl_weight.fill_(warmup(progress, self.kl_warmup))

    def after_step(self, progress: float) -> None:
        """Update the inclusion rates in closed form; fix the support when its time has come."""
        self.sparse.update()
        if self.prune_after is not None and not self.sparse.pruned and progress >= self.prune_after:
            self.prune()

    @property
    def loadings(self) -> nn.Parameter:
        """Loadings W, (G, K)."""
        return self.sparse.weight

    @property
    def inclusion_probability(self) -> Tensor:
        """Probability that each loading comes from the slab, p* (G, K)."""
        return self.sparse.inclusion_probability

    @property
    def pruned(self) -> bool:
        """Whether the support is fixed."""
        return self.sparse.pruned

    def prune(self, threshold: float = ACTIVE_LOADING) -> None:
        r"""Set loadings outside the support to zero for good.

        The support is :math:`\{|w| > \text{threshold}\} \cap \{p^* > 1/2\}`; from here on the
        decoder uses its short cut for features with a single active factor.
        """
        self.sparse.prune(threshold)

    @torch.no_grad()
    def empty(self, columns: Sequence[int], *, for_good: bool = False) -> None:
        """Take columns out: no loadings, and a posterior at the prior.

        Parameters
        ----------
        columns
            Positions of the columns.
        for_good
            Whether they stay empty whatever is fitted later, or may be used again.
        """
        chosen = list(columns)
        self.sparse.weight[:, chosen] = 0
        if for_good:
            self.sparse.support[:, chosen] = False
        self.encoder.forget(chosen)

    def _global_scale(self, batch: Batch, n_total: int | None) -> float:
        return (n_total or len(batch.x)) / len(batch.x) if self.released else 1.0
