"""Platelet RNA of several diseases: factors they share, their own, and which are findings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from probinterp.inference.storage import write_atomically
from probinterp.jobs.fitting import output_folder, write_fit, write_json
from probinterp.jobs.platelet_cohort import BATCH, Cohort, gene_sets_in, read_cohort
from probinterp.jobs.platelet_models import N_SHARED, PlateletFit, Training, fit_cohort
from probinterp.jobs.platelet_pages import moves_in_words, write_platelet_page
from probinterp.jobs.platelet_tables import (
    BATCH_ONLY,
    FEW_SAMPLES,
    FINDING,
    OWN_SAMPLES,
    UNSTABLE,
    PlateletTables,
    platelet_tables,
)


def run_platelets(
    out: str | Path = "platelets",
    *,
    path: str | Path | None = None,
    gene_sets: str | Path | None = None,
    seed: int = 0,
    n_seeds: int = 3,
    max_epochs: int = 100,
    n_shared: int = N_SHARED,
    device: str = "auto",
    progress: bool = True,
    cohort: Cohort | None = None,
) -> tuple[dict[str, Any], PlateletTables]:
    """Fit the multi-study sparse VAE to platelet RNA, judge its factors, write a report.

    Diseases are the studies and technical batches are taken out. Without the public series the same
    is done with synthetic counts, and everything that is written says so.

    Parameters
    ----------
    out
        Directory for ``report.html``, ``factors.csv``, ``contrasts.csv``, ``heldout.csv``,
        ``enrichment.csv`` (with gene sets), figures, ``adata.h5ad``, ``model/``, ``summary.json``.
    path
        The series, see :func:`probinterp.genomics.datasets.platelets`; None looks in
        ``PROBINTERP_DATA``, and simulates a cohort where nothing is found.
    gene_sets
        Folder of GMT files; None looks for ``genesets`` in ``PROBINTERP_DATA``.
    seed
        Seed of split, fits and simulation.
    n_seeds
        Refits that stability is judged by.
    max_epochs
        Length of every fit.
    n_shared
        Columns that all diseases have; each disease has one of its own.
    device, progress
        Where to fit, and whether to show progress bars.
    cohort
        Samples to analyse instead of those of ``path``.

    Returns
    -------
    tuple
        Summary, plain numbers and strings, and the tables behind it.

    Raises
    ------
    ValueError
        If ``n_seeds`` is not positive, or both ``path`` and ``cohort`` are given.
    FileNotFoundError
        If ``path`` or ``gene_sets`` is given and not there.
    """
    if n_seeds < 1:
        raise ValueError(f"n_seeds must be at least 1, got {n_seeds}.")
    if cohort is not None and path is not None:
        raise ValueError("give path or cohort, not both.")
    cohort = read_cohort(path, seed=seed) if cohort is None else cohort
    folder = output_folder(out)
    synthetic = cohort.synthetic and gene_sets is None
    sets = {} if synthetic else gene_sets_in(gene_sets)
    training = Training(max_epochs, seed, device, progress, n_shared)
    result = fit_cohort(cohort, training, n_seeds)
    tables = platelet_tables(cohort, result, sets)
    summary = write_fit(result.fitted, folder) | _summary(cohort, result, tables)
    summary = write_json(folder / "summary.json", summary)
    written = _write_tables(folder, cohort, tables)
    settings = {"data": cohort.title, "seed": seed, "refits": n_seeds, "epochs": max_epochs}
    written += write_platelet_page(folder / "report.html", cohort, result, tables, settings)
    names = sorted(file.name for file in written)
    return summary | {"files": [*names, "adata.h5ad", "model", "summary.json"]}, tables


def _summary(cohort: Cohort, result: PlateletFit, tables: PlateletTables) -> dict[str, Any]:
    share = tables.variance.shares.tolist()
    studies = result.fitted.train.study_names or ()
    return {
        "data": cohort.title,
        "synthetic": cohort.synthetic,
        "note": cohort.note,
        "confounding": cohort.confounding(),
        "batches": sorted(set(cohort.adata.obs[BATCH].astype(str))),
        "n_refits": len(result.stability.correlation),
        "findings": tables.with_status(FINDING),
        "explained_by_batch": tables.with_status(BATCH_ONLY),
        "stable_in_one_disease": tables.with_status(OWN_SAMPLES),
        "few_samples": tables.with_status(FEW_SAMPLES),
        "not_stable": tables.with_status(UNSTABLE),
        "uneven": result.uneven,
        "moves": moves_in_words(result.mending),
        "objectives_of_mending": [
            *result.mending.blocks.objectives,
            *result.mending.codes.objectives[1:],
        ],
        "removed": list(result.mending.removed),
        "heldout": tables.heldout.to_dict("records"),
        "variance_shares": {
            name: dict(zip(("shared", "specific", "noise"), row, strict=True))
            for name, row in zip(studies, share, strict=True)
        },
    }


def _write_tables(folder: Path, cohort: Cohort, tables: PlateletTables) -> list[Path]:
    """Tables as CSV with a first column that says what the data are."""
    named = {"factors": tables.factors, "contrasts": tables.contrasts, "heldout": tables.heldout}
    if not tables.enrichment.empty:
        genes = tables.enrichment["genes"].map(" ".join)
        named["enrichment"] = tables.enrichment.assign(genes=genes)
    files = []
    for name, table in named.items():
        whole = pd.DataFrame({"data": [cohort.title] * len(table)}, index=table.index).join(table)
        file = folder / f"{name}.csv"
        write_atomically(file, partial(whole.to_csv, index=False))
        files.append(file)
    return files
