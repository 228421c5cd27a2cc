"""Multi-study sparse variational autoencoder: factors that all studies share, and their own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.nn.functional import one_hot

from probinterp.distributions import GatedNormal
from probinterp.likelihoods import GaussianLikelihood, Likelihood
from probinterp.models.base import Batch, require_positive
from probinterp.models.blocks import blocks_of_columns, gates
from probinterp.models.encoder import GaussianEncoder
from probinterp.models.sparse_factor_model import SparseFactorModel
from probinterp.models.spike_slab_loadings import SpikeSlabLoadings
from probinterp.models.starts import components_by_block, rotated_components
from probinterp.nn import SparseDecoder
from probinterp.study_effects import StudyEffects, rows_by_study

NOISE_DEGREES = 3.0
OBSERVATIONS_PER_COLUMN = 5
SPIKE_PER_OBSERVATION, SLAB_PER_OBSERVATION = 0.5, 0.03


class MultiStudySparseVAE(SparseFactorModel):
    r"""Sparse variational autoencoder with factors shared by all studies and factors of one study.

    .. math::
        z_i = g^{(m_i)} \odot (z_i^S, \zeta_i^{(1)}, \dots, \zeta_i^{(M)}), \quad
        z_{ik} \sim N(0, 1)\ \text{where}\ g_k^{(m_i)} = 1, \quad
        x_{ij} \mid z_i \sim p\big(x \mid \ell_{m_i j} + h_j^\top f_\theta(w_j \odot z_i)\big)

    The gate g of study m holds the shared block and the block of m; all other coordinates are
    exactly zero. One spike-and-slab-lasso mask W covers all blocks, so that a column of block m
    gets its likelihood gradient from study m only. Empty columns are nearly free and new ones dear:
    a factor of all studies is cheaper as one shared column than as M specific ones. Choose more
    columns than factors are expected; what is not needed ends up empty.

    Parameters
    ----------
    n_features
        Number of observed features, G.
    n_shared
        Number of shared columns, :math:`K_S`.
    n_specific
        Number of columns specific to a study, :math:`K_m`: one number, or one for each study.
    n_studies
        Number of studies, M. With one study this is the sparse VAE.
    n_hidden
        Width of the hidden layers, H.
    spike, slab
        Rates :math:`\lambda_0 > \lambda_1`; by default 0.5 N and 0.03 N for N observations.
        Counts need larger ones.
    likelihood
        Distribution of the features; default Gaussian with an inverse gamma prior. Give it
        ``n_studies`` for noise that differs between studies, and for counts ``standardize=True``:
        without it the encoder loses factors.
    study_intercepts
        Whether every study has levels of its own, :math:`\ell_{mj}`, shrunk towards a common one;
        without, differences of means must be explained by factors.
    n_nuisance_levels
        Number of technical batches (``Batch.nuisance``) whose shifts are taken out; 0 for none.
    equal_studies
        Weigh the observations of study m by :math:`N / (M n_m)`, so that large studies do not
        outweigh small ones. The objective is then that of a mixture of equally frequent studies,
        and no longer a bound of the likelihood of the data at hand.
    start
        Where the mask starts: ``"components"``, principal components within studies, each in the
        block of the studies where it varies, or ``"random"``, from which specific factors end up
        in shared columns more often.
    kl_warmup
        Share of the planned steps over which the KL weight grows from 0 to 1.
    prune_after
        Share of the planned steps after which the support is fixed; None to leave it free.

    Raises
    ------
    ValueError
        If a size is not positive, ``n_specific`` does not have one entry a study, or rates are
        not ordered.

    References
    ----------
    Nonlinear multi-study factor analysis (Moran and Krishnan, 2026).

    Notes
    -----
    An unknown study (index -1) has shared factors only, the mean of the intercepts of the known
    ones, and is never the outcome of a default.
    """

    block: Tensor
    gates: Tensor
    study_weight: Tensor

    def __init__(
        self,
        n_features: int,
        n_shared: int,
        n_specific: int | Sequence[int],
        n_studies: int,
        *,
        n_hidden: int = 128,
        spike: float | None = None,
        slab: float | None = None,
        likelihood: Likelihood | None = None,
        study_intercepts: bool = True,
        n_nuisance_levels: int = 0,
        equal_studies: bool = False,
        start: Literal["random", "components"] = "components",
        kl_warmup: float = 0.5,
        prune_after: float | None = None,
    ) -> None:
        require_positive(n_features=n_features, n_hidden=n_hidden)
        block = blocks_of_columns(n_shared, n_specific, n_studies)
        n_factors = len(block)
        n_labels = n_studies if n_studies > 1 else 0  # one study says nothing
        n_inputs = n_features + n_labels + n_nuisance_levels
        encoder = GaussianEncoder(n_inputs, n_factors, n_hidden)
        decoder = SparseDecoder(n_features, n_factors, n_hidden)
        likelihood = likelihood or GaussianLikelihood(n_features, degrees=NOISE_DEGREES)
        if (study_intercepts and n_studies > 1) or n_nuisance_levels > 1:
            studies = n_studies if study_intercepts else 1
            likelihood = StudyEffects(likelihood, n_features, studies, n_nuisance_levels)
        super().__init__(
            SpikeSlabLoadings(n_features, n_factors, spike=spike, slab=slab),
            decoder,
            likelihood,
            rates=(SPIKE_PER_OBSERVATION, SLAB_PER_OBSERVATION),
            start=start,
            kl_warmup=kl_warmup,
            prune_after=prune_after,
        )
        self.encoder = encoder
        self.n_studies, self.n_nuisance_levels = n_studies, n_nuisance_levels
        self.equal_studies = equal_studies
        self.register_buffer("study_weight", torch.ones(n_studies + 1))  # the last: unknown
        self.register_buffer("block", block)
        self.register_buffer("gates", gates(block, n_studies))  # (M + 1, K), the last: unknown

    @property
    def gate(self) -> Tensor:
        """Which columns each study has, (M, K) boolean."""
        return self.gates[:-1]

    def gate_of(self, batch: Batch) -> Tensor:
        """Which columns each observation has, (B, K) boolean."""
        return self.gates[self._study(batch)]

    def factor_prior(self, batch: Batch) -> dist.TorchDistribution:
        """Standard normal within the gate, zero outside."""
        return GatedNormal(0.0, 1.0, self.gate_of(batch))

    def factor_posterior(self, batch: Batch) -> dist.TorchDistribution:
        """Posterior of z from what the likelihood lets the encoder see, and the study."""
        seen = [self.likelihood.encoder_input(batch)]
        if self.n_studies > 1:
            seen.append(self._label(self._study(batch), self.n_studies + 1)[:, :-1])
        if self.n_nuisance_levels:
            if batch.nuisance is None:
                raise ValueError(f"{self.n_nuisance_levels} batches need batch.nuisance, got None.")
            seen.append(self._label(batch.nuisance, self.n_nuisance_levels))
        normal = self.encoder(torch.cat(seen, dim=1) if len(seen) > 1 else seen[0])
        return GatedNormal(normal.mean, normal.stddev, self.gate_of(batch))

    def weight_of(self, batch: Batch) -> Tensor | float:
        """One, or what makes studies of all sizes count alike."""
        return self.study_weight[self._study(batch)] if self.equal_studies else 1.0

    def components(self, batch: Batch) -> Tensor:
        """Principal components within studies, each in the block of the studies it varies in."""
        seen = self.likelihood.encoder_input(batch)
        if self.n_studies == 1:
            return rotated_components(seen, len(self.block))
        return components_by_block(seen, self._study(batch), self.block)

    def inspect(self, batch: Batch, n_total: int) -> None:
        """Weigh studies; refuse one of one observation, warn of one too small for its block."""
        if self.n_studies == 1:
            return
        share = n_total / len(batch.x)
        studies = rows_by_study(batch, self.n_studies)
        if self.equal_studies:
            size = torch.tensor([float(len(rows.x)) for rows in studies])
            self.study_weight[:-1] = len(batch.x) / (self.n_studies * size).to(self.study_weight)
        for m, rows in enumerate(studies):
            n_obs, n_specific = round(len(rows.x) * share), int((self.block == m).sum())
            if n_obs < 2:
                raise ValueError(f"study {m} has one observation: nothing varies within it.")
            if n_obs < OBSERVATIONS_PER_COLUMN * n_specific:
                warnings.warn(
                    f"study {m} has {n_obs} observations, fewer than "
                    f"{OBSERVATIONS_PER_COLUMN} for each of its {n_specific} specific columns: "
                    "what they hold will not be stable.",
                    stacklevel=2,
                )

    def _label(self, index: Tensor, n_levels: int) -> Tensor:
        return one_hot(index % n_levels, n_levels).to(self.loadings.dtype)

    def _study(self, batch: Batch) -> Tensor:
        if batch.study is None:
            if self.n_studies > 1:
                raise ValueError(f"{self.n_studies} studies need batch.study, got None.")
            return torch.zeros(len(batch.x), dtype=torch.long, device=batch.x.device)
        known = batch.study < self.n_studies
        if batch.study.is_cuda:
            torch._assert_async(known.all())  # the host does not wait
        elif not known.all():
            raise ValueError(
                f"studies are numbered from 0 to {self.n_studies - 1}, "
                f"got {int(batch.study.max())}."
            )
        return batch.study
