"""Inference: fit a model, read its posterior, draw from its predictive, save it."""

from probinterp.inference.block_check import BlockCheck, Mending, block_check, mend_blocks
from probinterp.inference.checkpoint import load, read_config, read_history, save
from probinterp.inference.code_check import CodeCheck, code_check
from probinterp.inference.code_mending import CodeMending, mend_codes
from probinterp.inference.data import ArrayData, BatchData, Data
from probinterp.inference.early_stopping import EarlyStopping
from probinterp.inference.effective_factors import EffectiveFactors, effective_factors
from probinterp.inference.elbo import MeanFieldELBO, full_objective
from probinterp.inference.ensembles import EnsembleDraws, bootstrap_draws
from probinterp.inference.finite import NonFiniteError
from probinterp.inference.history import EpochRecord, FitHistory
from probinterp.inference.identifiability import anchor_report, covariance_condition
from probinterp.inference.laplace import Laplace, LaplaceDraws, laplace, laplace_draws
from probinterp.inference.marginal import log_predictive_density
from probinterp.inference.posterior import Factors, factors, posterior
from probinterp.inference.predictive import PredictiveDraws, predictive_draws
from probinterp.inference.pyro_draws import PyroDraw, PyroDraws, pyro_draws
from probinterp.inference.reconstruction import (
    ReconstructionStatistics,
    calibrate_noise,
    reconstruction_statistics,
)
from probinterp.inference.refinement import refined_locals
from probinterp.inference.refits import ModelRefits, model_refits
from probinterp.inference.restarts import Restarts, fit_restarts
from probinterp.inference.screening import Screening, screen_specific
from probinterp.inference.stability import Stability, refitting, stability
from probinterp.inference.svi import cosine, fit, late_cosine, late_linear
from probinterp.inference.training_state import Checkpoint
from probinterp.inference.variance_explained import VarianceExplained, variance_explained

__all__ = [
    "refined_locals",
    "BlockCheck",
    "CodeCheck",
    "CodeMending",
    "Mending",
    "Screening",
    "Stability",
    "block_check",
    "code_check",
    "mend_blocks",
    "mend_codes",
    "refitting",
    "screen_specific",
    "stability",
    "ArrayData",
    "BatchData",
    "Checkpoint",
    "Data",
    "EarlyStopping",
    "EffectiveFactors",
    "EnsembleDraws",
    "EpochRecord",
    "Factors",
    "FitHistory",
    "Laplace",
    "LaplaceDraws",
    "MeanFieldELBO",
    "ModelRefits",
    "NonFiniteError",
    "PredictiveDraws",
    "PyroDraw",
    "PyroDraws",
    "ReconstructionStatistics",
    "Restarts",
    "VarianceExplained",
    "anchor_report",
    "bootstrap_draws",
    "calibrate_noise",
    "cosine",
    "covariance_condition",
    "effective_factors",
    "factors",
    "fit",
    "fit_restarts",
    "full_objective",
    "laplace",
    "laplace_draws",
    "late_cosine",
    "late_linear",
    "load",
    "log_predictive_density",
    "model_refits",
    "posterior",
    "predictive_draws",
    "pyro_draws",
    "read_config",
    "read_history",
    "reconstruction_statistics",
    "save",
    "variance_explained",
]
