"""Sparse variational autoencoder: every feature depends on few factors."""

from __future__ import annotations

from typing import Literal

import torch
from pyro import distributions as dist
from torch import Tensor

from probinterp.likelihoods import GaussianLikelihood, Likelihood
from probinterp.models.base import Batch, require_positive
from probinterp.models.encoder import GaussianEncoder
from probinterp.models.factor_priors import FactorPrior, StandardNormalPrior
from probinterp.models.sparse_factor_model import SparseFactorModel
from probinterp.models.spike_slab_loadings import SpikeSlabLoadings
from probinterp.models.starts import rotated_components
from probinterp.nn import SparseDecoder

NOISE_DEGREES = 3.0
SPIKE_PER_OBSERVATION, SLAB_PER_OBSERVATION = 1.0, 0.06


class SparseVAE(SparseFactorModel):
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
        require_positive(n_features=n_features, n_factors=n_factors, n_hidden=n_hidden)
        if objective not in ("elbo", "released"):
            raise ValueError(f'objective must be "elbo" or "released", got {objective!r}.')
        released = objective == "released"
        encoder = GaussianEncoder(n_features, n_factors, n_hidden, full=full_covariance)
        decoder = SparseDecoder(n_features, n_factors, n_hidden, unit_norm=not released)
        likelihood = likelihood or GaussianLikelihood(n_features, degrees=NOISE_DEGREES)
        sparse = SpikeSlabLoadings(
            n_features, n_factors, spike=spike, slab=slab, mixture=not released
        )
        super().__init__(
            sparse,
            decoder,
            likelihood,
            rates=(SPIKE_PER_OBSERVATION, SLAB_PER_OBSERVATION),
            start=start,
            kl_warmup=kl_warmup,
            prune_after=prune_after,
            released=released,
        )
        self.encoder = encoder
        self.prior = prior or StandardNormalPrior(n_factors)

    def factor_prior(self, batch: Batch) -> dist.TorchDistribution:
        """Prior of z, the same for all observations."""
        return self.prior()

    def factor_posterior(self, batch: Batch) -> dist.TorchDistribution:
        """Posterior of z from what the likelihood lets the encoder see."""
        return self.encoder(self.likelihood.encoder_input(batch))

    def gate_of(self, batch: Batch) -> Tensor:
        """All columns."""
        shape = (len(batch.x), self.loadings.shape[1])
        return torch.ones(shape, dtype=torch.bool, device=batch.x.device)

    def weight_of(self, batch: Batch) -> float:
        """All observations count alike."""
        return 1.0

    def components(self, batch: Batch) -> Tensor:
        """Principal components of what the encoder sees, rotated towards sparsity."""
        return rotated_components(self.likelihood.encoder_input(batch), self.loadings.shape[1])
