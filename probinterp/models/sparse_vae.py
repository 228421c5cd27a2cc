"""Sparse variational autoencoder: every feature depends on few factors."""

from __future__ import annotations

import math
from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor, nn

from probinterp.distributions import SpikeSlabLasso
from probinterp.likelihoods import INITIAL_SCALE, GaussianLikelihood, Likelihood
from probinterp.models.annealing import require_share, warmup
from probinterp.models.base import (
    OBS_SITE,
    Batch,
    ProbabilisticModel,
    observations,
    require_positive,
)
from probinterp.models.encoder import GaussianEncoder
from probinterp.models.factor_priors import FactorPrior, StandardNormalPrior
from probinterp.models.starts import rotated_components
from probinterp.nn import SparseDecoder

MIN_RATE, MAX_RATE = 1e-6, 1 - 1e-6  # an inclusion rate of 0 kills its column for ever
ACTIVE_LOADING = 1e-2
NOISE_DEGREES = 3.0
SPIKE_PER_OBSERVATION, SLAB_PER_OBSERVATION = 1.0, 0.06


class SparseVAE(ProbabilisticModel):
    r"""Variational autoencoder with a spike-and-slab-lasso mask between factors and features.

    .. math::
        \eta_k \sim \mathrm{Beta}(1, G), \quad
        w_{jk} \sim \eta_k \mathrm{Laplace}(\lambda_1) + (1-\eta_k)\mathrm{Laplace}(\lambda_0),
        \quad z_i \sim N(0, I_K), \quad
        x_{ij} \mid z_i \sim p\big(x \mid h_j^\top f_\theta(w_j \odot z_i) + c_j\big)

    The same network f serves all features; feature j enters through its mask row and its linear
    head. W is a point estimate (MAP), the inclusion rates follow in closed form, z has an
    amortised posterior. Both free scales of the decoder are fixed by parametrisation, so that
    the penalty cannot be avoided.

    Parameters
    ----------
    n_features
        Number of observed features, G.
    n_factors
        Number of factors, K; columns that are not needed end up empty.
    n_hidden
        Width of the hidden layers, H; a multiple of 64 is fastest.
    spike, slab
        Rates :math:`\lambda_0 > \lambda_1`; by default N and 0.06 N for N observations, set by
        :meth:`initialize`.
    likelihood
        Distribution of the features; default Gaussian with an inverse gamma prior.
    prior
        Distribution of the factors; default standard normal.
    objective
        ``"elbo"`` is the properly scaled evidence lower bound. ``"released"`` is the loss of the
        authors' code, for comparisons: a KL weight of 1/K, the penalty times N/B, and a
        likelihood scale that is :math:`\sqrt G` times the noise scale which that code reports.
    start
        Where the mask starts: ``"random"`` (standard normal), or ``"components"``: principal
        components of what the encoder sees, rotated towards sparsity, with one head for all
        features. With many features a random start leaves factors unused.
    full_covariance
        Whether q(z | x) has a full covariance. A diagonal one is cheaper, but where factors act
        together on a feature it overestimates that feature's noise scale.
    kl_warmup
        Share of the planned steps over which the KL weight grows from 0 to 1. Without it
        posteriors collapse; a long one lets spare factors encode noise.
    prune_after
        Share of the planned steps after which the support is fixed by :meth:`prune` and the
        remaining loadings are refined; None to leave it free.

    Raises
    ------
    ValueError
        If a size is not positive, the rates are not ordered, or the objective is unknown.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran, Sridhar, Wang and Blei,
    2022), sections 2 and 3.

    Notes
    -----
    The authors' code omits :math:`\lambda_0/\lambda_1` in the inclusion probability, which moves
    the threshold; we use the exact mixture except under ``objective="released"``.
    """

    kl_weight: Tensor
    inclusion_rate: Tensor
    spike: Tensor
    slab: Tensor
    penalty: Tensor
    support: Tensor

    def __init__(
        self,
        n_features: int,
        n_factors: int,
        *,
        n_hidden: int = 128,
        spike: float | None = None,
        slab: float | None = None,
        likelihood: Likelihood | None = None,
        prior: FactorPrior | None = None,
        objective: Literal["elbo", "released"] = "elbo",
        full_covariance: bool = False,
        start: Literal["random", "components"] = "random",
        kl_warmup: float = 0.2,
        prune_after: float | None = None,
    ) -> None:
        super().__init__()
        require_positive(n_features=n_features, n_factors=n_factors, n_hidden=n_hidden)
        require_share(kl_warmup=kl_warmup, prune_after=prune_after)
        _require_rates(spike, slab)
        if objective not in ("elbo", "released"):
            raise ValueError(f'objective must be "elbo" or "released", got {objective!r}.')
        if start not in ("random", "components"):
            raise ValueError(f'start must be "random" or "components", got {start!r}.')
        self.start = start
        self.released = objective == "released"
        self.kl_warmup, self.prune_after = kl_warmup, prune_after
        self.rates = (spike, slab)
        self.encoder = GaussianEncoder(n_features, n_factors, n_hidden, full=full_covariance)
        self.decoder = SparseDecoder(n_features, n_factors, n_hidden, unit_norm=not self.released)
        self.likelihood = likelihood or GaussianLikelihood(n_features, degrees=NOISE_DEGREES)
        self.prior = prior or StandardNormalPrior(n_factors)
        self.loadings = nn.Parameter(torch.randn(n_features, n_factors))  # W, (G, K)
        self.register_buffer("inclusion_rate", torch.rand(n_factors).clamp(MIN_RATE, MAX_RATE))
        self.register_buffer("kl_weight", torch.tensor(1 / n_factors if self.released else 1.0))
        self.register_buffer("spike", torch.tensor(float(spike or 1.0)))
        self.register_buffer("slab", torch.tensor(float(slab or SLAB_PER_OBSERVATION)))
        self.register_buffer("penalty", torch.empty(n_features, n_factors))  # lambda*, released
        self.register_buffer("support", torch.ones(n_features, n_factors, dtype=torch.bool))
        self.pruned = False
        self.register_load_state_dict_post_hook(_restore_pruned)
        self._update_rates(torch.full((n_features, n_factors), 0.5))

    def model(self, batch: Batch, n_total: int | None = None) -> None:
        """Generative program; sites ``W``, ``inclusion_rate``, ``z`` and ``x``."""
        with poutine.scale(scale=self._global_scale(batch, n_total)):
            rate = pyro.sample("inclusion_rate", self._rate_prior())
            loadings = pyro.sample("W", self._loadings_prior(rate))
            noise = self.likelihood.log_prior()
            if noise is not None:
                pyro.factor("likelihood_prior", noise)
        with observations(batch, n_total):
            with poutine.scale(scale=self.kl_weight):
                z = pyro.sample("z", self.prior())
            support = self.support if self.pruned else None
            x = self.decoder.observe(z, loadings, self.likelihood, batch, support)
            pyro.sample(OBS_SITE, x, obs=batch.x)

    def guide(self, batch: Batch, n_total: int | None = None) -> None:
        """Point masses at the globals and the amortised posterior of ``z``."""
        with poutine.scale(scale=self._global_scale(batch, n_total)):
            pyro.sample("inclusion_rate", dist.Delta(self.inclusion_rate, event_dim=1))
            pyro.sample("W", dist.Delta(self.loadings * self.support, event_dim=2))
        with observations(batch, n_total), poutine.scale(scale=self.kl_weight):
            pyro.sample("z", self.encoder(self.likelihood.encoder_input(batch)))

    def decode(self, z: Tensor) -> Tensor:
        """Linear predictor of every feature from the masked factors, (N, G)."""
        support = self.support if self.pruned else None
        return self.decoder(z, self.loadings * self.support, support)

    @torch.no_grad()
    def initialize(self, batch: Batch, n_total: int) -> None:
        """Set the rates for ``n_total`` observations and the likelihood's starting values."""
        spike, slab = self.rates
        if spike is None:
            self.spike.fill_(SPIKE_PER_OBSERVATION * n_total)
        if slab is None:
            self.slab.fill_(SLAB_PER_OBSERVATION * n_total)
        self.likelihood.initialize(batch)
        if not self.released:
            if self.start == "components":
                seen = self.likelihood.encoder_input(batch)
                self.loadings.copy_(rotated_components(seen, self.loadings.shape[1]))
                self.decoder.heads.copy_(self.decoder.heads[0].expand_as(self.decoder.heads))
            location, scale = self.likelihood.linear_predictor_moments(batch)
            self.decoder.bias.copy_(location)
            self.decoder.heads.mul_(scale.unsqueeze(1))
        if self.released and isinstance(self.likelihood, GaussianLikelihood):
            n_features = len(self.loadings)
            self.likelihood.log_scale.add_(math.log(math.sqrt(n_features) / INITIAL_SCALE))
            self.likelihood.prior_variance.mul_(n_features)
        self._update_rates(torch.full_like(self.loadings, 0.5))

    def anneal(self, progress: float) -> None:
        """Set the KL weight."""
        if not self.released:
            self.kl_weight.fill_(warmup(progress, self.kl_warmup))

    def after_step(self, progress: float) -> None:
        """Update the inclusion rates in closed form; fix the support when its time has come."""
        self._update_rates(self.inclusion_probability)
        if self.prune_after is not None and not self.pruned and progress >= self.prune_after:
            self.prune()

    @property
    def inclusion_probability(self) -> Tensor:
        """Probability that each loading comes from the slab, p* (G, K)."""
        if self.released:  # the authors' code leaves the ratio of the rates out
            gap = (self.spike - self.slab) * self.loadings.abs()
            return torch.sigmoid(torch.logit(self.inclusion_rate) + gap)
        prior = SpikeSlabLasso(self.spike, self.slab, self.inclusion_rate, validate_args=False)
        return prior.inclusion_probability(self.loadings) * self.support

    @torch.no_grad()
    def prune(self, threshold: float = ACTIVE_LOADING) -> None:
        r"""Set loadings outside the support to zero for good.

        The support is :math:`\\{|w| > \text{threshold}\} \\cap \\{p^* > 1/2\}`; from here on the
        decoder uses its short cut for features with a single active factor.
        """
        self.support.copy_(active_loadings(self.loadings, self.inclusion_probability, threshold))
        self.pruned = True

    @torch.no_grad()
    def _update_rates(self, inclusion: Tensor) -> None:
        n_features = len(inclusion)
        rate = inclusion.sum(0) / (2 * n_features - 1)  # mode of Beta(1, G) with soft counts
        self.inclusion_rate.copy_(rate.clamp(MIN_RATE, MAX_RATE))
        self.penalty.copy_(self.slab * inclusion + self.spike * (1 - inclusion))

    def _loadings_prior(self, rate: Tensor) -> dist.TorchDistribution:
        if self.released:
            return dist.Laplace(0.0, 1 / self.penalty).to_event(2)
        expanded = rate.expand(self.loadings.shape)
        return SpikeSlabLasso(self.spike, self.slab, expanded).to_event(2)

    def _rate_prior(self) -> dist.TorchDistribution:
        shape = torch.ones_like(self.inclusion_rate)
        return dist.Beta(shape, shape * len(self.loadings)).to_event(1)

    def _global_scale(self, batch: Batch, n_total: int | None) -> float:
        return (n_total or len(batch.x)) / len(batch.x) if self.released else 1.0


def _restore_pruned(model: SparseVAE, _: object) -> None:
    model.pruned = not bool(model.support.all())


def active_loadings(
    loadings: Tensor, inclusion: Tensor, threshold: float = ACTIVE_LOADING
) -> Tensor:
    """Support of the loadings, (G, K) boolean: large enough and more likely slab than spike."""
    return (loadings.abs() > threshold) & (inclusion > 0.5)


def _require_rates(spike: float | None, slab: float | None) -> None:
    for name, value in {"spike": spike, "slab": slab}.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if spike is not None and slab is not None and spike <= slab:
        raise ValueError(f"spike must be larger than slab = {slab}, got {spike}.")
