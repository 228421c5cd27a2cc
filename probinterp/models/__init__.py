"""Models: one paper section per file."""

from probinterp.models import exact
from probinterp.models.base import ActivationBatch, Batch, ProbabilisticModel
from probinterp.models.decoder_priors import GroupSpikeSlabLasso
from probinterp.models.factor_analysis import FactorAnalysis
from probinterp.models.factor_priors import (
    CorrelatedNormalPrior,
    FactorPrior,
    LowRankNormalPrior,
    StandardNormalPrior,
)
from probinterp.models.latent_dirichlet_allocation import LatentDirichletAllocation
from probinterp.models.mixtures import GaussianMixture, MixtureDraws, MultinomialMixture
from probinterp.models.multistudy_ecm import fit_ecm
from probinterp.models.multistudy_factor_analysis import MultiStudyFactorAnalysis
from probinterp.models.multistudy_sparse_vae import MultiStudySparseVAE
from probinterp.models.sparse_vae import SparseVAE
from probinterp.models.transcoder import CrossLayerTranscoder
from probinterp.models.transcoder_baselines import IdentityProxy, MeanProxy, RidgeProxy
from probinterp.models.vae import VAE

__all__ = [
    "VAE",
    "ActivationBatch",
    "Batch",
    "CorrelatedNormalPrior",
    "CrossLayerTranscoder",
    "FactorAnalysis",
    "FactorPrior",
    "GaussianMixture",
    "GroupSpikeSlabLasso",
    "IdentityProxy",
    "LatentDirichletAllocation",
    "LowRankNormalPrior",
    "MeanProxy",
    "MixtureDraws",
    "MultiStudyFactorAnalysis",
    "MultiStudySparseVAE",
    "MultinomialMixture",
    "ProbabilisticModel",
    "RidgeProxy",
    "SparseVAE",
    "StandardNormalPrior",
    "exact",
    "fit_ecm",
]
