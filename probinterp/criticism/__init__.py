"""Predictive checks of any model that can replicate and score data."""

from probinterp.criticism import discrepancies
from probinterp.criticism.draws import (
    Discrepancy,
    FunctionDraw,
    PredictiveDraw,
    PredictiveMixture,
)
from probinterp.criticism.pop_pc import pop_pc, ppc
from probinterp.criticism.result import PopPCResult
from probinterp.criticism.warnings import (
    CriticismWarning,
    HeldoutSizeWarning,
    LocalDoubleUseWarning,
    PointEstimateWarning,
    RegimeWarning,
)

__all__ = [
    "CriticismWarning",
    "Discrepancy",
    "FunctionDraw",
    "HeldoutSizeWarning",
    "LocalDoubleUseWarning",
    "PointEstimateWarning",
    "PopPCResult",
    "PredictiveDraw",
    "PredictiveMixture",
    "RegimeWarning",
    "discrepancies",
    "pop_pc",
    "ppc",
]
