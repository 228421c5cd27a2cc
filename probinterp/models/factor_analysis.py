"""Factor analysis: the linear model whose posterior and evidence are known exactly."""

from __future__ import annotations

import math

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probinterp.likelihoods import GaussianLikelihood, Likelihood
from probinterp.models.base import (
    OBS_SITE,
    Batch,
    ProbabilisticModel,
    observations,
    require_positive,
)


class FactorAnalysis(ProbabilisticModel):
    r"""Linear factor analysis with a Gaussian guide that can be exact.

    .. math:: z_i \sim N(0, I_K), \quad x_i \mid z_i \sim N(b + W z_i, \mathrm{diag}(\sigma^2)),
              \quad q(z \mid x) = N(V t(x) + v, L L^\top)

    Here t is what the likelihood shows an encoder: standardised features, log counts. For
    Gaussian features the guide contains the true posterior, so the ELBO can reach the marginal
    likelihood; both are available in closed form as oracles for inference and criticism. Where
    entries are missing the true posterior differs from row to row and the guide, which has one
    linear map for all, only approximates it; the closed forms take a mask.

    Parameters
    ----------
    n_features
        Number of observed features, G.
    n_factors
        Number of factors, K.
    likelihood
        Distribution of the features around :math:`W z`; default Gaussian, the only one with
        closed forms.

    References
    ----------
    Pattern Recognition and Machine Learning (Bishop, 2006), section 12.2.4.
    """

    zero: Tensor
    identity: Tensor

    def __init__(
        self, n_features: int, n_factors: int, *, likelihood: Likelihood | None = None
    ) -> None:
        super().__init__()
        require_positive(n_features=n_features, n_factors=n_factors)
        self.loadings = nn.Parameter(0.1 * torch.randn(n_features, n_factors))
        self.intercept = nn.Parameter(torch.zeros(n_features))
        self.likelihood = likelihood or GaussianLikelihood(n_features)
        self.encoder = nn.Parameter(0.01 * torch.randn(n_factors, n_features))  # V, (K, G)
        self.encoder_bias = nn.Parameter(torch.zeros(n_factors))
        self.raw_scale = nn.Parameter(torch.eye(n_factors))  # lower triangle of L
        self.register_buffer("zero", torch.zeros(n_factors), persistent=False)
        self.register_buffer("identity", torch.eye(n_factors), persistent=False)

    def model(self, batch: Batch, n_total: int | None = None) -> None:
        """Generative program; sites ``z`` and ``x``."""
        with observations(batch, n_total):
            z = pyro.sample("z", dist.MultivariateNormal(self.zero, scale_tril=self.identity))
            pyro.sample(OBS_SITE, self.likelihood(self.decode(z), batch), obs=batch.x)

    def guide(self, batch: Batch, n_total: int | None = None) -> None:
        """Posterior of ``z``: linear in x with one covariance for all observations."""
        loc = self.likelihood.encoder_input(batch) @ self.encoder.mT + self.encoder_bias
        lower = self.raw_scale.tril(-1) + torch.diag(self.raw_scale.diagonal().abs() + 1e-6)
        with observations(batch, n_total):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=lower))

    def decode(self, z: Tensor) -> Tensor:
        """Linear predictor b + W z, (N, G)."""
        return z @ self.loadings.mT + self.intercept

    @torch.no_grad()
    def initialize(self, batch: Batch, n_total: int) -> None:
        """Start from the leading principal components of what the encoder sees."""
        self.likelihood.initialize(batch)
        scaled = self.likelihood.encoder_input(batch)
        scaled = scaled - scaled.mean(0)
        rank = min(self.loadings.shape[1], *scaled.shape)
        _, singular, right = torch.linalg.svd(scaled, full_matrices=False)
        loadings = torch.zeros_like(self.loadings)
        loadings[:, :rank] = right[:rank].mT * (singular[:rank] / len(scaled) ** 0.5)
        if isinstance(self.likelihood, GaussianLikelihood):
            spread = self.likelihood.spread
            unexplained = 1 - loadings.square().sum(1).clamp(max=0.95)
            self.likelihood.log_scale.copy_((spread * unexplained.sqrt()).log())
            self.intercept.copy_(self.likelihood.center)
            loadings = loadings * spread.unsqueeze(1)
            self.loadings.copy_(loadings)
            covariance, gain = self._posterior_terms()
            self.encoder.copy_(gain * spread)
            self.raw_scale.copy_(torch.linalg.cholesky(covariance))
        else:
            self.loadings.copy_(0.3 * loadings)
            self.encoder.copy_(torch.linalg.pinv(loadings))
            self.encoder_bias.copy_(-self.likelihood.encoder_input(batch).mean(0) @ self.encoder.mT)
            self.raw_scale.copy_(0.5 * self.identity)

    def exact_posterior(self, x: Tensor, mask: Tensor | None = None) -> dist.MultivariateNormal:
        r"""Posterior of the factors of ``x`` (N, G) in closed form.

        .. math:: z \mid x \sim N(\Sigma W^\top \Psi^{-1} (x - b),\ \Sigma), \quad
                  \Sigma = (I + W^\top \Psi^{-1} W)^{-1}

        With a mask (N, G), True where observed, W and :math:`\Psi` hold the observed features of
        each row.
        """
        if mask is None:
            covariance, gain = self._posterior_terms()
            return dist.MultivariateNormal((x - self.intercept) @ gain.mT, covariance)
        precision, shift, _ = self._masked_terms(x, mask)
        mean = torch.linalg.solve(precision, shift.unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def log_marginal_likelihood(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        r"""Log density of each row of ``x`` (N, G), z integrated: :math:`N(b, WW^\top + \Psi)`.

        With a mask (N, G), that of the observed features of each row.
        """
        noise = self._noise_scale().square()
        if mask is None:
            marginal = dist.LowRankMultivariateNormal(self.intercept, self.loadings, noise)
            return marginal.log_prob(x)
        precision, shift, residual = self._masked_terms(x, mask)
        lower = torch.linalg.cholesky(precision)  # Woodbury: no (G, G) matrix for any row
        whitened = torch.linalg.solve_triangular(lower, shift.unsqueeze(-1), upper=False)
        distance = (residual.square() / noise).sum(-1) - whitened.square().sum((-2, -1))
        seen = mask.to(x.dtype)
        log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1) + seen @ noise.log()
        return -0.5 * (distance + log_det + seen.sum(-1) * math.log(2 * math.pi))

    def exact_locals(self, batch: Batch) -> dict[str, dist.TorchDistribution] | None:
        """:meth:`exact_posterior` of the batch; None unless the features are Gaussian."""
        if not isinstance(self.likelihood, GaussianLikelihood):
            return None
        return {"z": self.exact_posterior(batch.x, batch.mask)}

    def exact_marginal(
        self, batch: Batch, over: dict[str, dist.TorchDistribution] | None = None
    ) -> dist.TorchDistribution | None:
        r"""Normal distribution of the features with z integrated out; None if not Gaussian.

        .. math:: x_i \sim N(b + W m_i,\ W S_i W^\top + \Psi), \quad z_i \sim N(m_i, S_i)

        None too where the batch has a mask, because rows are then vectors of different lengths.
        """
        if not isinstance(self.likelihood, GaussianLikelihood) or batch.mask is not None:
            return None
        prior = dist.MultivariateNormal(self.zero, scale_tril=self.identity)
        z = prior if over is None else over["z"]
        if not isinstance(z, dist.MultivariateNormal):
            return None
        factor = self.loadings @ z.scale_tril
        noise = self.likelihood.scale.square()
        marginal = dist.LowRankMultivariateNormal(self.decode(z.loc), factor, noise)
        return marginal.expand(batch.x.shape[:1])

    def _posterior_terms(self) -> tuple[Tensor, Tensor]:
        weighted = self.loadings / self._noise_scale().square().unsqueeze(1)  # Psi^-1 W
        precision = self.identity + self.loadings.mT @ weighted
        covariance = torch.linalg.inv(precision)
        return covariance, covariance @ weighted.mT

    def _masked_terms(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precision of z (N, K, K), its natural location (N, K) and the residuals (N, G)."""
        weighted = self.loadings / self._noise_scale().square().unsqueeze(1)  # Psi^-1 W
        products = (weighted.unsqueeze(2) * self.loadings.unsqueeze(1)).flatten(1)  # (G, K K)
        precision = (mask.to(x.dtype) @ products).unflatten(-1, self.identity.shape)
        residual = torch.where(mask, x - self.intercept, 0.0)
        return precision + self.identity, residual @ weighted, residual

    def _noise_scale(self) -> Tensor:
        if not isinstance(self.likelihood, GaussianLikelihood):
            raise TypeError(
                f"closed forms need a GaussianLikelihood, got {type(self.likelihood).__name__}."
            )
        return self.likelihood.scale
