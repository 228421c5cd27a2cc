"""What the factors of a platelet cohort are worth: stability, batches, contrasts, gene sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from probinterp.genomics import enrich_factors, factor_contrasts, top_genes, variance_shares
from probinterp.inference import VarianceExplained, variance_explained
from probinterp.inference.posterior import SHARED_NAME
from probinterp.jobs.pages import compare_densities, factor_table
from probinterp.jobs.platelet_cohort import BATCH, DISEASE, Cohort
from probinterp.jobs.platelet_models import STABLE, PlateletFit

LEVEL = 0.05
FINDING, BATCH_ONLY, UNSTABLE = "stable", "explained by batch", "not stable"
FEW_SAMPLES, OWN_SAMPLES = "few samples", "stable in its samples"
FEWEST = 5.0  # effective number of samples that must carry a factor
TOP_GENES = 50  # of a factor that gene sets are tested in
EVERYONE = "all"


class PlateletTables(NamedTuple):
    """Tables of a fit.

    Attributes
    ----------
    factors
        One row a factor: block, stability, status, whether a shared factor varies unevenly
        between diseases, shares of batch and disease, genes.
    contrasts
        Differences of shared factors between diseases, within batches.
    heldout
        Log density of held-out samples by group and model, with the paired difference.
    enrichment
        Gene sets over-represented among the top genes of stable factors; empty without.
    variance
        Shares of the variance that shared and specific factors and noise have in every group.
    """

    factors: pd.DataFrame
    contrasts: pd.DataFrame
    heldout: pd.DataFrame
    enrichment: pd.DataFrame
    variance: VarianceExplained

    def with_status(self, status: str) -> list[str]:
        """Names of the factors of that status."""
        return list(self.factors.loc[self.factors["status"] == status, "factor"])


def platelet_tables(
    cohort: Cohort, result: PlateletFit, gene_sets: Mapping[str, frozenset[str]]
) -> PlateletTables:
    """All tables of a fit to a cohort."""
    obs, names = result.fitted.adata.obs, result.fitted.factor_names
    scores = pd.DataFrame(result.fitted.factors.scores.numpy(), columns=names)
    factors = _judged(result, scores)
    shared = list(factors.loc[factors["block"] == SHARED_NAME, "factor"])
    contrasts = pd.DataFrame()
    if shared:
        contrasts = factor_contrasts(
            scores[shared], obs[DISEASE], batch=obs[BATCH], reference=cohort.reference
        )
    return PlateletTables(
        factors,
        contrasts,
        heldout_table(result),
        _enriched(result, factors, gene_sets),
        variance_explained(result.fitted.model, result.everyone.data),
    )


def heldout_table(result: PlateletFit) -> pd.DataFrame:
    """Mean log density of held-out samples by group and model, first over all of them.

    The difference is that of the multi-study model minus the model of the row, paired over samples.
    Groups with a single held-out sample have no row of their own.
    """
    study = result.fitted.heldout.batch().study
    assert study is not None
    groups = {EVERYONE: study >= 0}
    groups |= {name: study == m for m, name in enumerate(result.fitted.train.study_names or ())}
    tables = []
    for name, rows in groups.items():
        if int(rows.sum()) < 2:
            continue
        table = compare_densities({model: x[rows] for model, x in result.densities.items()})
        table.insert(0, "group", name)
        table.insert(1, "samples", int(rows.sum()))
        tables.append(table.rename(columns={"nats per cell": "nats per sample"}))
    return pd.concat(tables, ignore_index=True)


def _judged(result: PlateletFit, scores: pd.DataFrame) -> pd.DataFrame:
    """Factors with their stability, and what batches explain of them."""
    if scores.shape[1] == 0:
        return pd.DataFrame(columns=["factor", "block", "stability", "status"])
    reference, recovered = result.stability.reference.columns, result.stability.recovered
    came_back = dict(zip(reference.tolist(), recovered.tolist(), strict=True))
    columns = result.fitted.factors.columns.tolist()
    judged = _shares(result, scores)
    judged["uneven"] = judged["factor"].isin(result.uneven)
    judged["stability"] = [round(came_back.get(column, 0.0), 3) for column in columns]
    stable = judged["stability"] >= STABLE
    judged["status"] = np.where(stable, FINDING, UNSTABLE)
    judged["samples"] = [round(effective_samples(scores[name]), 1) for name in judged["factor"]]
    table = factor_table(result.fitted, None).merge(judged, on="factor", how="right")
    specific = (table["block"] != SHARED_NAME) & (table["status"] == FINDING)
    table.loc[specific, "status"] = OWN_SAMPLES
    table.loc[table["batch_alone"].notna() & table.pop("by_batch"), "status"] = BATCH_ONLY
    table.loc[table["samples"] < FEWEST, "status"] = FEW_SAMPLES
    first = ["factor", "block", "status", "stability", "samples", "uneven"]
    return table[first + [name for name in table if name not in first]]


def effective_samples(scores: pd.Series) -> float:
    r"""How many samples carry the variance of a factor, scores of zero left out.

    .. math:: \Big(\sum_i c_i^2\Big)^2 \Big/ \sum_i c_i^4

    with the centred scores c: a third of the samples where these are normal, 1 where all variance
    is one sample's.
    """
    here = scores[scores != 0].astype(float)
    square = (here - here.mean()).pow(2)
    return float(square.sum() ** 2 / square.pow(2).sum()) if square.any() else 0.0


def _shares(result: PlateletFit, scores: pd.DataFrame) -> pd.DataFrame:
    """Shares of batch, disease and library size: a factor of one disease among its samples only."""
    obs, library = result.fitted.adata.obs, result.everyone.library_size
    assert library is not None
    blocks = np.array(result.fitted.blocks)
    tables = []
    for block in dict.fromkeys(blocks):
        specific = block != SHARED_NAME
        rows = (obs[DISEASE] == block).to_numpy() if specific else np.full(len(obs), True)
        disease, batch = (obs.loc[rows, key].astype(str) for key in (DISEASE, BATCH))
        part = variance_shares(scores.loc[rows, blocks == block], disease, batch, library[rows])
        part["by_batch"] = part["explained_by_batch_alone"]
        if specific:
            part["by_batch"] = part["batch_alone_p"] <= LEVEL
            part[["group_alone", "group_after"]] = np.nan
        tables.append(part)
    kept = [f"{term}_{how}" for term in ("batch", "group", "library") for how in ("alone", "after")]
    return pd.concat(tables, ignore_index=True)[
        ["factor", *kept, "batch_alone_p", "group_after_p", "by_batch"]
    ]


def _enriched(
    result: PlateletFit, factors: pd.DataFrame, gene_sets: Mapping[str, frozenset[str]]
) -> pd.DataFrame:
    """Gene sets among the genes that stable factors move most; all genes are the background."""
    stable = factors.loc[factors["status"] == FINDING, "factor"]
    if len(stable) == 0 or not gene_sets:
        return pd.DataFrame()
    train = result.fitted.train
    top = top_genes(
        result.fitted.factors,
        TOP_GENES,
        var_names=train.var_names,
        by_effect=True,
        study_names=train.study_names,
    )
    table = enrich_factors(top[top["factor"].isin(stable)], gene_sets, list(train.var_names))
    return table[table["q_value"] <= LEVEL].sort_values("q_value", kind="stable")
