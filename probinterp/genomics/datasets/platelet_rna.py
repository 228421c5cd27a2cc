"""Platelet RNA of patients with six cancers and of healthy donors (GSE68086)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from probinterp.genomics.annotation import check_anndata, obs_column
from probinterp.genomics.datasets.deposited_series import read_annotation, read_counts
from probinterp.genomics.files import read_h5ad
from probinterp.genomics.validation import Origin, checked_matrix, listing, row_blocks, summarise

FOLDER = "tep_gse68086"
BATCHES = ("Batch02", "Batch03", "Batch04")
WITHOUT = ("Hepatobiliary",)


def platelets(
    path: str | Path | None = None,
    *,
    annotation: str | Path | None = None,
    symbols: Mapping[str, str] | None = None,
    batches: Sequence[str] | None = BATCHES,
    without: Sequence[str] = WITHOUT,
    min_count: int = 5,
    min_share: float = 0.9,
    unannotated: Literal["raise", "drop"] = "raise",
) -> AnnData:
    """Read platelet RNA counts of GSE68086 and keep samples and genes that can be compared.

    Healthy donors and some cancers occur in a part of the batches only, so that over all batches a
    batch can pass for a disease; the defaults keep three batches that hold most groups.

    Parameters
    ----------
    path
        An h5ad with counts, ``obs["cancer_type"]``, ``obs["batch"]`` and ``var["symbol"]``; a
        table of counts, genes by samples, as deposited (CSV or text, also gzip or zip); or a
        folder with either. None takes ``tep_gse68086`` in the folder that the environment variable
        ``PROBINTERP_DATA`` names, or in ``../shared/data``.
    annotation
        Sample annotation of a table of counts: the series matrix, as GEO gives it or as CSV, or
        a table with the columns sample name, cancer type and batch. Not needed for a folder.
    symbols
        Symbol of each Ensembl id, for tables of counts, which hold none.
    batches
        Batches to keep; None keeps all.
    without
        Groups to leave out.
    min_count, min_share
        Genes are kept that have ``min_count`` reads in at least the share ``min_share`` of the
        samples kept.
    unannotated
        Whether samples without annotation are refused or left out (and counted).

    Returns
    -------
    AnnData
        ``X`` is CSR in float32; ``obs`` has disease, batch, total_counts (over all genes),
        library_size (over the genes kept), size_factor (library size over its median) and further
        annotation; ``var`` has symbol (empty where unknown); ``uns["platelets"]`` has every
        choice and count as numbers and strings.

    Raises
    ------
    FileNotFoundError
        If there are no such files.
    KeyError
        If an h5ad lacks a column.
    ValueError
        If names are duplicated, samples lack annotation, entries are no counts, a batch
        does not occur, or nothing is left.

    References
    ----------
    RNA-seq of tumor-educated platelets enables blood-based pan-cancer, multiclass, and molecular
    pathway cancer diagnostics (Best et al., 2015).
    """
    _check_options(batches, without, min_count, min_share, unannotated)
    counts_path, annotation_path = _located(path, annotation)
    if annotation_path is None:
        whole, record = _from_h5ad(counts_path)
    else:
        whole, record = _from_tables(counts_path, annotation_path, symbols or {}, unannotated)
    samples = whole[_chosen_samples(whole, batches, without)].copy()
    enough = sp.csr_matrix(samples.X > min_count - 1) if min_count else np.ones(samples.shape)
    genes = np.asarray(enough.mean(axis=0)).ravel() >= min_share
    if not genes.any():
        raise ValueError(
            f"no gene has {min_count} counts in {min_share:.0%} of {samples.n_obs} samples."
        )
    samples.obs["total_counts"] = _row_sums(samples.X)
    subset = samples[:, genes].copy()
    _add_size_factors(subset)
    record |= {
        "batches": "all" if batches is None else ", ".join(batches),
        "without": ", ".join(without),
        "min_count": min_count,
        "min_share": min_share,
        "n_samples_read": whole.n_obs,
        "n_genes_read": whole.n_vars,
        "n_samples": subset.n_obs,
        "n_genes": subset.n_vars,
        "n_genes_with_symbol": int((subset.var["symbol"] != "").sum()),
        "median_library_size": float(np.median(subset.obs["library_size"])),
    }
    record |= {f"n_{name}": int(n) for name, n in subset.obs["disease"].value_counts().items()}
    subset.uns["platelets"] = record
    return subset


def _check_options(
    batches: Sequence[str] | None,
    without: Sequence[str],
    min_count: int,
    min_share: float,
    unannotated: str,
) -> None:
    if isinstance(batches, str) or isinstance(without, str):
        raise TypeError("batches and without must be sequences of names, got one string.")
    if min_count < 0 or not 0 <= min_share <= 1:
        raise ValueError(
            f"min_count must be >= 0 and min_share in [0, 1], got {min_count} and {min_share}."
        )
    if unannotated not in ("raise", "drop"):
        raise ValueError(f"unannotated must be 'raise' or 'drop', got {unannotated!r}.")


def _located(path: str | Path | None, annotation: str | Path | None) -> tuple[Path, Path | None]:
    """Files of counts and of annotation; no annotation for an h5ad."""
    base = Path(os.environ.get("PROBINTERP_DATA", "../shared/data")) / FOLDER
    found = base if path is None else Path(path)
    if found.is_dir():
        stored = _matching(found, "*.h5ad")
        counts = stored or _matching(found, "*data_matrix*")
        notes = None if stored else _matching(found, "*series_matrix*", "*annotation*")
        if counts is None or not (stored or notes):
            raise _absent(f"{found} holds neither an h5ad nor a data matrix with a series matrix")
        return counts, notes
    given = None if annotation is None else Path(annotation)
    for file in filter(None, (found, given)):
        if not file.is_file():
            raise _absent(f"{file} not found")
    if found.suffix != ".h5ad" and given is None:
        raise ValueError(f"{found} is a table of counts: give annotation=..., too.")
    if found.suffix == ".h5ad" and given is not None:
        raise ValueError(f"{found} has its own annotation: give no annotation=....")
    return found, given


def _absent(what: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{what}. Get GSE68086_TEP_data_matrix.txt.gz and GSE68086_series_matrix.txt.gz of the "
        "series GSE68086 from the Gene Expression Omnibus, put both into one folder and give it "
        "as path; or simulate similar data with probinterp.simulate.platelet_like."
    )


def _matching(folder: Path, *patterns: str) -> Path | None:
    found = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if len(found) > 1:
        raise ValueError(f"{folder} holds several files {listing([f.name for f in found])}.")
    return found[0] if found else None


def _from_h5ad(path: Path) -> tuple[AnnData, dict[str, str | int | float]]:
    adata = read_h5ad(path)
    check_anndata(adata)
    for key in ("cancer_type", "batch"):
        obs_column(adata, key)
    if "symbol" not in adata.var:
        raise KeyError(f"'symbol' not in adata.var; available: {sorted(map(str, adata.var))}.")
    matrix = checked_matrix(adata.X, str(path))
    origin = Origin(str(path), adata.obs_names, adata.var_names)
    summarise(row_blocks(matrix), origin, counts=True)
    obs = adata.obs.rename(columns={"cancer_type": "disease"})
    var = adata.var.assign(symbol=adata.var["symbol"].astype(object).fillna(""))
    counts = sp.csr_matrix(matrix, dtype=np.float32)
    return AnnData(X=counts, obs=obs, var=var), {"source": str(path), "layout": "h5ad"}


def _from_tables(
    counts_path: Path, annotation_path: Path, symbols: Mapping[str, str], unannotated: str
) -> tuple[AnnData, dict[str, str | int | float]]:
    read = read_counts(counts_path)
    notes = read_annotation(annotation_path, read.samples)
    known = read.samples.isin(notes.index)
    if not known.all() and (unannotated == "raise" or not known.any()):
        raise ValueError(
            f"{(~known).sum()} of {len(known)} samples of {counts_path} have no annotation in "
            f"{annotation_path}: {listing(read.samples[~known])}; the annotation names samples "
            f"such as {listing(notes.index, 3)}. Leave them out with unannotated='drop'."
        )
    samples = read.samples[known]
    obs = notes.loc[samples].rename(columns={"cancer_type": "disease"}).rename_axis(None)
    named = [symbols.get(gene, "") for gene in read.genes]
    var = pd.DataFrame({"symbol": named}, index=read.genes.rename(None), dtype=object)
    record: dict[str, str | int | float] = {
        "source": str(counts_path),
        "annotation": str(annotation_path),
        "layout": "tables",
        "samples_named_by": str(notes.index.name),
        "n_without_annotation": int((~known).sum()),
        "n_without_counts": int((~notes.index.isin(samples)).sum()),
        "n_rows_without_gene": read.n_other_rows,
    }
    return AnnData(X=read.counts[np.flatnonzero(known)], obs=obs, var=var), record


def _chosen_samples(
    adata: AnnData, batches: Sequence[str] | None, without: Sequence[str]
) -> np.ndarray:
    chosen = np.ones(adata.n_obs, dtype=bool)
    for key, names, keep in (("batch", batches, True), ("disease", without, False)):
        column = adata.obs[key].astype(str)
        unknown = sorted(set(names or ()) - set(column))
        if keep and unknown:
            raise ValueError(
                f"{key} {listing(unknown)} does not occur; "
                f"there are {listing(sorted(set(column)))}."
            )
        if names is not None:
            chosen &= (column.isin(list(names)) == keep).to_numpy()
        adata.obs[key] = pd.Categorical(column)
    if not chosen.any():
        raise ValueError("no sample is left in these batches without these groups.")
    return chosen


def _add_size_factors(adata: AnnData) -> None:
    library = _row_sums(adata.X)
    if (library == 0).any():
        empty = adata.obs_names[library == 0]
        raise ValueError(f"samples without any count in the genes kept: {listing(empty)}.")
    adata.obs["library_size"] = library
    adata.obs["size_factor"] = library / np.median(library)
    for key in ("disease", "batch"):
        adata.obs[key] = adata.obs[key].cat.remove_unused_categories()


def _row_sums(matrix: sp.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
