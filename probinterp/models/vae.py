"""Variational autoencoder with a dense decoder: the baseline of the sparse one."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from torch import Tensor

from probinterp.likelihoods import GaussianLikelihood, Likelihood
from probinterp.models.annealing import require_share, warmup
from probinterp.models.base import (
    OBS_SITE,
    Batch,
    ProbabilisticModel,
    observations,
    require_positive,
)
from probinterp.models.encoder import GaussianEncoder, at_least_float32
from probinterp.models.factor_priors import FactorPrior, StandardNormalPrior
from probinterp.nn import mlp


class VAE(ProbabilisticModel):
    r"""Variational autoencoder, with an optional weight on the KL divergence.

    .. math:: z_i \sim p(z), \quad x_i \mid z_i \sim p(x \mid f_\theta(z_i)), \quad
              q(z \mid x) = N(\mu_\phi(x), \mathrm{diag}\, s_\phi^2(x))

    Parameters
    ----------
    n_features
        Number of observed features, G.
    n_factors
        Number of factors, K.
    n_hidden
        Width of the hidden layers of encoder and decoder, H.
    beta
        Final weight of the KL divergence; 1 is the ELBO.
    likelihood
        Distribution of the features; default :class:`GaussianLikelihood`.
    prior
        Distribution of the factors; default standard normal.
    kl_warmup
        Share of the planned steps over which the KL weight grows from 0 to ``beta``.

    References
    ----------
    Auto-Encoding Variational Bayes (Kingma and Welling, 2014), section 3;
    beta-VAE (Higgins et al., 2017), equation 4.
    """

    kl_weight: Tensor

    def __init__(
        self,
        n_features: int,
        n_factors: int,
        *,
        n_hidden: int = 128,
        beta: float = 1.0,
        likelihood: Likelihood | None = None,
        prior: FactorPrior | None = None,
        kl_warmup: float = 0.5,
    ) -> None:
        super().__init__()
        require_positive(n_features=n_features, n_factors=n_factors, n_hidden=n_hidden)
        require_share(kl_warmup=kl_warmup)
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}.")
        self.encoder = GaussianEncoder(n_features, n_factors, n_hidden)
        self.decoder = mlp([n_factors, n_hidden, n_hidden, n_features])
        self.likelihood = likelihood or GaussianLikelihood(n_features)
        self.prior = prior or StandardNormalPrior(n_factors)
        self.beta, self.kl_warmup = beta, kl_warmup
        self.register_buffer("kl_weight", torch.tensor(float(beta)))

    def model(self, batch: Batch, n_total: int | None = None) -> None:
        """Generative program; sites ``z`` and ``x``."""
        with observations(batch, n_total):
            with poutine.scale(scale=self.kl_weight):
                z = pyro.sample("z", self.prior())
            pyro.sample(OBS_SITE, self.likelihood(self.decode(z), batch), obs=batch.x)

    def guide(self, batch: Batch, n_total: int | None = None) -> None:
        """Amortised posterior of ``z``."""
        with observations(batch, n_total), poutine.scale(scale=self.kl_weight):
            pyro.sample("z", self.encoder(self.likelihood.encoder_input(batch)))

    def decode(self, z: Tensor) -> Tensor:
        """Linear predictor f(z), (N, G)."""
        return at_least_float32(self.decoder(z))

    def initialize(self, batch: Batch, n_total: int) -> None:
        """Set the likelihood's starting values from the data."""
        self.likelihood.initialize(batch)

    def anneal(self, progress: float) -> None:
        """Set the KL weight."""
        self.kl_weight.fill_(self.beta * warmup(progress, self.kl_warmup))
