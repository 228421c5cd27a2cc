"""Sparse latent-variable models and held-out checks of what they found.

Nothing heavy is imported here: AnnData, scanpy, ArviZ and matplotlib come with
:mod:`probinterp.genomics` and :mod:`probinterp.reporting`.
"""

from probinterp import models, simulate
from probinterp.criticism import discrepancies, pop_pc, pop_pc_suite, ppc
from probinterp.inference import (
    ArrayData,
    EarlyStopping,
    factors,
    fit,
    fit_restarts,
    load,
    log_predictive_density,
    posterior,
    predictive_draws,
    save,
)
from probinterp.version import __version__

__all__ = [
    "ArrayData",
    "EarlyStopping",
    "__version__",
    "discrepancies",
    "factors",
    "fit",
    "fit_restarts",
    "load",
    "log_predictive_density",
    "models",
    "pop_pc",
    "pop_pc_suite",
    "posterior",
    "ppc",
    "predictive_draws",
    "save",
    "simulate",
]
