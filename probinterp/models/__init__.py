"""Models: one paper section per file."""

from probinterp.models.base import Batch, ProbabilisticModel
from probinterp.models.factor_analysis import FactorAnalysis
from probinterp.models.factor_priors import (
    CorrelatedNormalPrior,
    FactorPrior,
    LowRankNormalPrior,
    StandardNormalPrior,
)
from probinterp.models.sparse_vae import SparseVAE
from probinterp.models.vae import VAE

__all__ = [
    "VAE",
    "Batch",
    "CorrelatedNormalPrior",
    "FactorAnalysis",
    "FactorPrior",
    "LowRankNormalPrior",
    "ProbabilisticModel",
    "SparseVAE",
    "StandardNormalPrior",
]
