"""Inference: fit a model, read its posterior, draw from its predictive, save it."""

from probinterp.inference.checkpoint import load, read_config, read_history, save
from probinterp.inference.data import ArrayData, Data
from probinterp.inference.early_stopping import EarlyStopping
from probinterp.inference.elbo import MeanFieldELBO, full_objective
from probinterp.inference.finite import NonFiniteError
from probinterp.inference.history import EpochRecord, FitHistory
from probinterp.inference.identifiability import anchor_report, covariance_condition
from probinterp.inference.posterior import Factors, factors, posterior
from probinterp.inference.predictive import (
    PredictiveDraws,
    log_predictive_density,
    predictive_draws,
)
from probinterp.inference.restarts import Restarts, fit_restarts
from probinterp.inference.svi import cosine, fit, late_cosine
from probinterp.inference.training_state import Checkpoint

__all__ = [
    "ArrayData",
    "Checkpoint",
    "Data",
    "EarlyStopping",
    "EpochRecord",
    "Factors",
    "FitHistory",
    "MeanFieldELBO",
    "NonFiniteError",
    "PredictiveDraws",
    "Restarts",
    "anchor_report",
    "cosine",
    "covariance_condition",
    "factors",
    "fit",
    "fit_restarts",
    "full_objective",
    "late_cosine",
    "load",
    "log_predictive_density",
    "posterior",
    "predictive_draws",
    "read_config",
    "read_history",
    "save",
]
