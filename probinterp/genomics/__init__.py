"""Genomics: AnnData in, factors, marker groups and gene set enrichment out."""

from probinterp.genomics import datasets
from probinterp.genomics.enrichment import enrich_factors, enrichment, read_gmt
from probinterp.genomics.expression import ExpressionData, LoadReport, from_anndata
from probinterp.genomics.factors import marker_groups, top_genes, write_factors
from probinterp.genomics.splitting import split

__all__ = [
    "ExpressionData",
    "LoadReport",
    "datasets",
    "enrich_factors",
    "enrichment",
    "from_anndata",
    "marker_groups",
    "read_gmt",
    "split",
    "top_genes",
    "write_factors",
]
