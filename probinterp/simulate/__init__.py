"""Data with known truth, one generator per model."""

from probinterp.simulate.counts import CountTruth, sparse_counts
from probinterp.simulate.documents import TopicTruth, topics
from probinterp.simulate.linear import FactorAnalysisTruth, factor_analysis
from probinterp.simulate.linear_studies import linear_multistudy
from probinterp.simulate.platelets import PlateletTruth, platelet_like
from probinterp.simulate.sparse import SparseTruth, sparse_decoder, sparse_vae_toy
from probinterp.simulate.studies import MultiStudyTruth, multistudy

__all__ = [
    "CountTruth",
    "FactorAnalysisTruth",
    "MultiStudyTruth",
    "PlateletTruth",
    "SparseTruth",
    "TopicTruth",
    "factor_analysis",
    "linear_multistudy",
    "multistudy",
    "platelet_like",
    "sparse_counts",
    "sparse_decoder",
    "sparse_vae_toy",
    "topics",
]
