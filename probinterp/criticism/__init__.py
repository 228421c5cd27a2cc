"""Predictive checks of any model that can replicate and score data."""

from probinterp.criticism import comparison, discrepancies
from probinterp.criticism.adapters import ReplicatedDraws, from_arrays, from_callable
from probinterp.criticism.calibrated_ppc import CalibratedPPCResult, calibrated_ppc
from probinterp.criticism.code_counts import (
    CodeCountDraws,
    RateCheck,
    code_count_suite,
    rate_check,
)
from probinterp.criticism.cross import CrossResult, cross_pop_pc
from probinterp.criticism.divided import DividedResult, divided_check
from probinterp.criticism.draws import (
    Discrepancy,
    FunctionDraw,
    PredictiveDraw,
    StackedReplicates,
)
from probinterp.criticism.holdout import (
    Holdout,
    cap_rows,
    k_fold,
    split_groups,
    split_rows,
    split_within,
)
from probinterp.criticism.holdout_entries import (
    CountSplit,
    MaskedEntries,
    mask_entries,
    split_counts,
    split_features,
)
from probinterp.criticism.logit_check import DriftCheck, drift_check
from probinterp.criticism.masked_draws import MaskedDraws, masked_draws
from probinterp.criticism.multiplicity import adjust
from probinterp.criticism.null_check import NullCandidate, posterior_predictive_null
from probinterp.criticism.null_result import NullCheckResult
from probinterp.criticism.point_estimates import analytic_p, analytic_z
from probinterp.criticism.pop_pc import pop_pc, pop_pc_suite, ppc
from probinterp.criticism.predictive_mixture import PredictiveMixture
from probinterp.criticism.proxy_checks import check_proxy, check_proxy_blocks, proxy_suite
from probinterp.criticism.proxy_draws import ResidualModel, fit_residual_model, residual_draws
from probinterp.criticism.proxy_result import ProxyCheckResult
from probinterp.criticism.proxy_summaries import ProxyBlock
from probinterp.criticism.ranking import Ranking
from probinterp.criticism.refits import Refits
from probinterp.criticism.result import PopPCResult
from probinterp.criticism.score_comparison import ScoreComparison, ScoreRow, compare_scores
from probinterp.criticism.scores import Coverage, Score, coverage, crps, log_score
from probinterp.criticism.split_check import SplitFit, split_check
from probinterp.criticism.stopping import SequentialStop
from probinterp.criticism.token_layout import TokenLayout
from probinterp.criticism.verdict import Verdict
from probinterp.criticism.warnings import (
    CriticismWarning,
    HeldoutSizeWarning,
    LocalDoubleUseWarning,
    PointEstimateWarning,
    RegimeWarning,
)

__all__ = [
    "CalibratedPPCResult",
    "CodeCountDraws",
    "CountSplit",
    "Coverage",
    "CriticismWarning",
    "CrossResult",
    "Discrepancy",
    "DividedResult",
    "DriftCheck",
    "FunctionDraw",
    "HeldoutSizeWarning",
    "Holdout",
    "LocalDoubleUseWarning",
    "MaskedDraws",
    "MaskedEntries",
    "NullCandidate",
    "NullCheckResult",
    "PointEstimateWarning",
    "PopPCResult",
    "PredictiveDraw",
    "PredictiveMixture",
    "ProxyBlock",
    "ProxyCheckResult",
    "Ranking",
    "RateCheck",
    "Refits",
    "RegimeWarning",
    "ReplicatedDraws",
    "ResidualModel",
    "Score",
    "ScoreComparison",
    "ScoreRow",
    "SequentialStop",
    "SplitFit",
    "StackedReplicates",
    "TokenLayout",
    "Verdict",
    "adjust",
    "analytic_p",
    "analytic_z",
    "calibrated_ppc",
    "cap_rows",
    "check_proxy",
    "check_proxy_blocks",
    "code_count_suite",
    "compare_scores",
    "comparison",
    "coverage",
    "cross_pop_pc",
    "crps",
    "discrepancies",
    "divided_check",
    "drift_check",
    "fit_residual_model",
    "from_arrays",
    "from_callable",
    "k_fold",
    "log_score",
    "mask_entries",
    "masked_draws",
    "pop_pc",
    "pop_pc_suite",
    "posterior_predictive_null",
    "ppc",
    "proxy_suite",
    "rate_check",
    "residual_draws",
    "split_check",
    "split_counts",
    "split_features",
    "split_groups",
    "split_rows",
    "split_within",
]
