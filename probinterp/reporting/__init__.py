"""Pictures, ArviZ trees and one-page reports, all made from results and never from models."""

from probinterp.reporting.arviz_draws import ArvizDraws, from_arviz
from probinterp.reporting.calibration_plots import (
    calibrated_ppc_distribution,
    p_value_ecdf,
    refit_calibration,
)
from probinterp.reporting.check_plots import (
    pop_pc_distribution,
    pop_pc_features,
    pop_pc_intervals,
)
from probinterp.reporting.inference_data import to_arviz
from probinterp.reporting.loo import LooPit, loo_pit
from probinterp.reporting.null_plots import null_check_matrix
from probinterp.reporting.plots import factor_activity, loadings_heatmap, training_curve
from probinterp.reporting.proxy_check_plots import plot_proxy_checks
from probinterp.reporting.report import Figure, Finding, Section, Table, write_report
from probinterp.reporting.score_plots import (
    interval_coverage,
    pit_ecdf,
    pit_histogram,
    score_differences,
)
from probinterp.reporting.split_plots import block_p_values, fold_effects, fold_p_values
from probinterp.reporting.stability_plots import plot_stability
from probinterp.reporting.study_plots import (
    plot_activity,
    plot_block_loadings,
    plot_variance_explained,
)
from probinterp.reporting.vision_cards import plot_feature_card
from probinterp.reporting.vision_plots import (
    plot_contributions,
    plot_faithfulness,
    plot_reconstruction,
    plot_replacement,
)

__all__ = [
    "ArvizDraws",
    "Figure",
    "Finding",
    "LooPit",
    "Section",
    "Table",
    "block_p_values",
    "calibrated_ppc_distribution",
    "factor_activity",
    "fold_effects",
    "fold_p_values",
    "from_arviz",
    "interval_coverage",
    "loadings_heatmap",
    "loo_pit",
    "null_check_matrix",
    "p_value_ecdf",
    "pit_ecdf",
    "pit_histogram",
    "plot_activity",
    "plot_block_loadings",
    "plot_contributions",
    "plot_proxy_checks",
    "plot_faithfulness",
    "plot_feature_card",
    "plot_reconstruction",
    "plot_replacement",
    "plot_stability",
    "plot_variance_explained",
    "pop_pc_distribution",
    "pop_pc_features",
    "pop_pc_intervals",
    "refit_calibration",
    "score_differences",
    "to_arviz",
    "training_curve",
    "write_report",
]
