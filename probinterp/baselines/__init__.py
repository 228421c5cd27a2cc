"""Methods to compare with, behind one interface, and the comparison."""

from probinterp.baselines.comparison import compare
from probinterp.baselines.covariances import predicted_covariance, sample_covariance
from probinterp.baselines.factor_analysis import StackedFactorAnalysis
from probinterp.baselines.fitted_model import FittedModel
from probinterp.baselines.model_baselines import (
    ModelBaseline,
    multistudy_factor_analysis,
    multistudy_sparse_vae,
    sparse_vae,
    vae,
)
from probinterp.baselines.per_study import FittedPerStudy, PerStudy
from probinterp.baselines.protocol import Baseline, FittedBaseline
from probinterp.baselines.results import BaselineResult, Comparison
from probinterp.baselines.study_means import FittedStudyMeans, StudyMeans

__all__ = [
    "Baseline",
    "BaselineResult",
    "Comparison",
    "FittedBaseline",
    "FittedModel",
    "FittedPerStudy",
    "FittedStudyMeans",
    "ModelBaseline",
    "PerStudy",
    "StackedFactorAnalysis",
    "StudyMeans",
    "compare",
    "multistudy_factor_analysis",
    "multistudy_sparse_vae",
    "predicted_covariance",
    "sample_covariance",
    "sparse_vae",
    "vae",
]
