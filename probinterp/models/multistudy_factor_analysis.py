"""Linear multi-study factor analysis, whose posterior and evidence are known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probinterp.likelihoods import GaussianLikelihood, by_study
from probinterp.models.base import (
    OBS_SITE,
    Batch,
    ProbabilisticModel,
    observations,
    require_positive,
)
from probinterp.models.blocks import blocks_of_columns, gates
from probinterp.models.gated_multivariate_normal import GatedMultivariateNormal
from probinterp.models.multistudy_components import (
    MultiStudyScatter,
    completed,
    joint_components,
)
from probinterp.study_effects import rows_by_study


class MultiStudyFactorAnalysis(ProbabilisticModel):
    r"""Linear factors that all studies share and factors of one study, with the exact posterior.

    .. math::
        x_i = \mu_m + \Phi f_i + \Lambda_m l_i + e_i, \quad
        f_i \sim N(0, I_{K_S}), \quad l_i \sim N(0, I_{K_m}), \quad e_i \sim N(0, \Psi_m), \quad
        \Sigma_m = \Phi \Phi^\top + \Lambda_m \Lambda_m^\top + \Psi_m

    for an observation of study m, with :math:`\Psi_m` diagonal. The loadings are the columns of one
    matrix W: :math:`\Phi` first, then :math:`\Lambda_1, \Lambda_2, \dots`; a gate makes the factors
    of other studies exactly zero. The guide is the posterior in closed form, so that the ELBO is
    the log likelihood. :func:`fit_ecm` maximises it without gradients.

    Parameters
    ----------
    n_features
        Number of observed features, G.
    n_shared
        Number of shared factors, :math:`K_S`.
    n_specific
        Number of factors specific to a study, :math:`K_m`: one number, or one for each study.
    n_studies
        Number of studies, M. With one study and no specific factors this is factor analysis.

    Raises
    ------
    ValueError
        If a size is not positive or ``n_specific`` does not have one entry a study.

    References
    ----------
    Multi-study factor analysis (De Vito, Bellio, Trippa and Parmigiani, 2019), section 2.

    Notes
    -----
    The authors make the loadings lower triangular; we leave their rotation within each block free,
    which changes no distribution. Supports and single factors are therefore not identified.
    An unknown study (index -1) has the shared factors only, and the mean of the known studies'
    intercepts and of their log noise scales.
    """

    block: Tensor
    gates: Tensor
    identity: Tensor

    def __init__(
        self, n_features: int, n_shared: int, n_specific: int | Sequence[int], n_studies: int
    ) -> None:
        super().__init__()
        require_positive(n_features=n_features)
        block = blocks_of_columns(n_shared, n_specific, n_studies)
        self.n_studies = n_studies
        self.loadings = nn.Parameter(0.1 * torch.randn(n_features, len(block)))  # W, (G, K)
        self.intercept = nn.Parameter(torch.zeros(n_studies, n_features))  # mu, (M, G)
        self.likelihood = GaussianLikelihood(n_features, n_studies=n_studies)
        self.register_buffer("block", block)
        self.register_buffer("gates", gates(block, n_studies))  # (M + 1, K), the last: unknown
        self.register_buffer("identity", torch.eye(len(block)), persistent=False)

    @property
    def gate(self) -> Tensor:
        """Which columns each study has, (M, K) boolean."""
        return self.gates[:-1]

    def model(self, batch: Batch, n_total: int | None = None) -> None:
        """Generative program; sites ``z`` and ``x``."""
        batch = self.labelled(batch)
        with observations(batch, n_total):
            z = pyro.sample("z", self._prior(batch))
            eta = self.decode(z) + by_study(self.intercept, batch)
            pyro.sample(OBS_SITE, self.likelihood(eta, batch), obs=batch.x)

    def guide(self, batch: Batch, n_total: int | None = None) -> None:
        """Exact posterior of ``z``."""
        with observations(batch, n_total):
            pyro.sample("z", self.exact_posterior(batch))

    def decode(self, z: Tensor) -> Tensor:
        """Deviation W z from the level of the study, (N, G)."""
        return z @ self.loadings.mT

    @torch.no_grad()
    def initialize(self, batch: Batch, n_total: int) -> None:
        """Start from principal components that the studies have in common, then their own."""
        batch = self.labelled(batch)
        self.likelihood.initialize(batch)
        scatter = MultiStudyScatter.of(rows_by_study(completed(batch), self.n_studies))
        loadings, noise = joint_components(scatter, self.block)
        self.set_parameters(scatter.mean, loadings, noise)

    @torch.no_grad()
    def set_parameters(self, intercept: Tensor, loadings: Tensor, noise: Tensor) -> None:
        r"""Copy :math:`\mu` (M, G), W (G, K) and the diagonals of :math:`\Psi` (M, G) in place."""
        self.intercept.copy_(intercept)
        self.loadings.copy_(loadings)
        scale = self.likelihood.log_scale
        scale.copy_(0.5 * noise.log().reshape(scale.shape))

    def exact_posterior(self, batch: Batch) -> GatedMultivariateNormal:
        r"""Posterior of the factors of a batch in closed form, zero outside the gate.

        .. math:: z \mid x \sim N(S W_m^\top \Psi_m^{-1} (x - \mu_m),\ S), \quad
            S = (I + W_m^\top \Psi_m^{-1} W_m)^{-1}

        With ``batch.mask`` it is conditional on the observed entries of each row.
        """
        batch = self.labelled(batch)
        precision, shift, _ = self._terms(batch)
        root = dist.MultivariateNormal(torch.zeros_like(precision[:, 0]), None, precision)
        lower = root.scale_tril if batch.mask is not None else root.scale_tril[batch.study]
        loc = (lower @ (lower.mT @ shift.unsqueeze(-1))).squeeze(-1)
        return GatedMultivariateNormal(loc, lower, self.gates[batch.study], validate_args=False)

    def log_marginal_likelihood(self, batch: Batch) -> Tensor:
        r"""Log density of each row, factors integrated out, :math:`N(\mu_m, \Sigma_m)`, (N,).

        With ``batch.mask``, that of the observed entries of each row.
        """
        batch = self.labelled(batch)
        precision, shift, residual = self._terms(batch)
        noise = self._noise()[batch.study]
        lower = torch.linalg.cholesky(precision)  # Woodbury: no (G, G) matrix
        log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if batch.mask is None:
            lower, log_det = lower[batch.study], log_det[batch.study]
        whitened = torch.linalg.solve_triangular(lower, shift.unsqueeze(-1), upper=False)
        distance = (residual.square() / noise).sum(-1) - whitened.square().sum((-2, -1))
        seen = torch.ones_like(noise) if batch.mask is None else batch.mask.to(noise.dtype)
        constant = (seen * (noise.log() + math.log(2 * math.pi))).sum(-1)
        return -0.5 * (distance + log_det + constant)

    def covariance(self, study: int) -> Tensor:
        r"""Covariance matrix of the features in a study, :math:`\Sigma_m` (G, G).

        Raises
        ------
        ValueError
            If the model does not know the study.
        """
        if not 0 <= study < self.n_studies:
            raise ValueError(
                f"studies are numbered from 0 to {self.n_studies - 1}, got {study}: an unknown "
                "study has no covariance."
            )
        loadings = self.loadings * self.gates[study]
        return loadings @ loadings.mT + self._noise()[study].diag()

    def exact_locals(self, batch: Batch) -> dict[str, dist.TorchDistribution] | None:
        """:meth:`exact_posterior` of the batch."""
        return {"z": self.exact_posterior(batch)}

    def exact_marginal(
        self, batch: Batch, over: dict[str, dist.TorchDistribution] | None = None
    ) -> dist.TorchDistribution | None:
        r"""Normal distribution of the features with z integrated out.

        .. math:: x_i \sim N(\mu_m + W m_i,\ W S_i W^\top + \Psi_m), \quad z_i \sim N(m_i, S_i)

        None where the batch has a mask, because rows are then vectors of different lengths, or
        where z has another distribution.
        """
        if batch.mask is not None:
            return None
        batch = self.labelled(batch)
        z = self._prior(batch) if over is None else over["z"]
        if not isinstance(z, GatedMultivariateNormal):
            return None
        gated = self.loadings * self.gates[batch.study].unsqueeze(-2)  # (B, G, K)
        mean = self.decode(z.mean) + by_study(self.intercept, batch)
        noise = self._noise()[batch.study]
        return dist.LowRankMultivariateNormal(mean, gated @ z.scale_tril, noise)

    def labelled(self, batch: Batch) -> Batch:
        """The batch with a study for every observation.

        Raises
        ------
        ValueError
            If there are several studies and the batch does not say which, or one is out of range.
        """
        if batch.study is None:
            if self.n_studies > 1:
                raise ValueError(f"{self.n_studies} studies need batch.study, got None.")
            index = torch.zeros(len(batch.x), dtype=torch.long, device=batch.x.device)
            return batch._replace(study=index)
        known = batch.study < self.n_studies
        if batch.study.is_cuda:
            torch._assert_async(known.all())  # the host does not wait
        elif not known.all():
            raise ValueError(
                f"studies are numbered from 0 to {self.n_studies - 1}, "
                f"got {int(batch.study.max())}."
            )
        return batch

    def _prior(self, batch: Batch) -> GatedMultivariateNormal:
        gate = self.gates[batch.study]
        identity = self.identity.expand(*gate.shape, gate.shape[-1])
        loc = torch.zeros_like(gate, dtype=identity.dtype)
        return GatedMultivariateNormal(loc, identity, gate, validate_args=False)

    def _noise(self) -> Tensor:
        """Noise variances of each study, (M + 1, G); the last row is of an unknown one."""
        log_scale = self.likelihood.log_scale.reshape(self.n_studies, -1)
        return (2 * torch.cat([log_scale, log_scale.mean(0, keepdim=True)])).exp()

    def _terms(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Precision of z, its natural location (B, K) and the residuals (B, G).

        The precision has a matrix for each study, (M + 1, K, K), or, with a mask, for each
        row, (B, K, K).
        """
        gate, inverse = self.gates[batch.study], 1 / self._noise()
        residual = batch.x - by_study(self.intercept, batch)
        weight, both = inverse, self.gates
        if batch.mask is not None:
            residual = torch.where(batch.mask, residual, 0.0)
            weight, both = batch.mask * inverse[batch.study], gate
        products = (self.loadings.unsqueeze(2) * self.loadings.unsqueeze(1)).flatten(1)  # (G, KK)
        precision = (weight @ products).unflatten(-1, self.identity.shape)
        precision = precision * (both.unsqueeze(-1) & both.unsqueeze(-2)) + self.identity
        shift = (residual * inverse[batch.study]) @ self.loadings * gate
        return precision, shift, residual
