"""Pictures, ArviZ trees and one-page reports, all made from results and never from models."""

from probinterp.reporting.check_plots import (
    pop_pc_distribution,
    pop_pc_features,
    pop_pc_intervals,
)
from probinterp.reporting.inference_data import to_arviz
from probinterp.reporting.plots import factor_activity, loadings_heatmap, training_curve
from probinterp.reporting.report import Figure, Section, Table, Verdict, write_report

__all__ = [
    "Figure",
    "Section",
    "Table",
    "Verdict",
    "factor_activity",
    "loadings_heatmap",
    "pop_pc_distribution",
    "pop_pc_features",
    "pop_pc_intervals",
    "to_arviz",
    "training_curve",
    "write_report",
]
