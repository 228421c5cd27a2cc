"""Gene expression: from AnnData to a model and back, and what its factors mean.

Importing this package imports anndata; ``import probinterp`` does not.
"""

from probinterp.genomics import datasets
from probinterp.genomics.contrasts import factor_contrasts
from probinterp.genomics.enrichment import enrich_factors, enrichment, read_gmt
from probinterp.genomics.expression import ExpressionData, from_anndata
from probinterp.genomics.factors import factor_names, top_genes, write_factors
from probinterp.genomics.load_report import LoadReport
from probinterp.genomics.markers import marker_groups
from probinterp.genomics.scvi_draws import CellDraws, from_posterior_predictive_sample
from probinterp.genomics.splits import AnnDataSplit, ExpressionSplit, split
from probinterp.genomics.stratified_ranks import StratifiedRanks, permuted_within, van_elteren
from probinterp.genomics.variance_shares import variance_shares

__all__ = [
    "AnnDataSplit",
    "CellDraws",
    "ExpressionData",
    "ExpressionSplit",
    "LoadReport",
    "StratifiedRanks",
    "datasets",
    "enrich_factors",
    "enrichment",
    "factor_contrasts",
    "factor_names",
    "from_anndata",
    "from_posterior_predictive_sample",
    "marker_groups",
    "permuted_within",
    "read_gmt",
    "split",
    "top_genes",
    "van_elteren",
    "variance_shares",
    "write_factors",
]
