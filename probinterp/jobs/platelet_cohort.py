"""Platelet RNA of several disease groups: the public series, or synthetic counts in its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from probinterp import simulate
from probinterp.genomics import datasets, read_gmt
from probinterp.simulate import PlateletTruth

DISEASE, BATCH = "disease", "batch"
REAL, SYNTHETIC = "GSE68086", "SYNTHETIC DATA"
HEALTHY = "HC"
FEW = 5  # samples of a disease in a batch below which it is named as confounded
WHOLE_SERIES = (
    "In the whole series healthy donors, GBM and Pancreas never occur in batches 05 and 06, which "
    "hold tumour samples only: there a batch can pass for a disease, and these batches are left "
    "out unless the file given holds others."
)
CONFOUNDED = 0.4  # how far the groups of the synthetic cohort follow their batches


class Cohort(NamedTuple):
    """Samples with the columns ``disease`` and ``batch``, genes named by symbol where there is one.

    Attributes
    ----------
    adata
        Counts, samples by genes.
    synthetic
        Whether they are simulated.
    note
        What the data are, and what they are not.
    """

    adata: AnnData
    synthetic: bool
    note: str

    @property
    def title(self) -> str:
        """Heading that says what the data are."""
        return f"Platelet RNA, {SYNTHETIC if self.synthetic else REAL}"

    @property
    def reference(self) -> str | None:
        """Group that the others are compared with: the healthy donors, if there are any."""
        return HEALTHY if HEALTHY in set(self.adata.obs[DISEASE]) else None

    def design(self) -> pd.DataFrame:
        """Number of samples of every disease (rows) in every batch (columns)."""
        labels = (self.adata.obs[key].astype(str) for key in (DISEASE, BATCH))
        return pd.crosstab(*labels).rename_axis(index=None, columns=None)

    def confounding(self) -> str:
        """Which diseases can hardly be told from batches, in words."""
        design = self.design()
        rare = [
            f"{disease} has {'no' if n == 0 else n} sample{'' if n == 1 else 's'} in {batch}"
            for disease, counts in design.iterrows()
            for batch, n in counts.items()
            if n < FEW
        ]
        text = (
            f"Diseases and batches are not crossed evenly: {'; '.join(rare)}."
            if rare
            else (f"Every disease has {FEW} samples or more in every batch.")
        )
        return text if self.synthetic else f"{text} {WHOLE_SERIES}"


def read_cohort(path: str | Path | None = None, *, seed: int = 0) -> Cohort:
    """Read the public platelet series; without ``path`` and without it, simulate a cohort.

    Parameters
    ----------
    path
        File or folder, see :func:`probinterp.genomics.datasets.platelets`; None looks where that
        function looks.
    seed
        Seed of the simulation.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.

    References
    ----------
    RNA-Seq of tumor-educated platelets enables blood-based pan-cancer, multiclass, and molecular
    pathway cancer diagnostics (Best et al., 2015).
    """
    try:
        adata = datasets.platelets(path)
    except FileNotFoundError as error:
        if path is not None:
            raise
        note = (
            f"{SYNTHETIC}: these counts are simulated and say nothing about platelets or "
            f"disease. The public series was not found: {error}"
        )
        return Cohort(
            synthetic_cohort(simulate.platelet_like(confounded=CONFOUNDED, seed=seed)), True, note
        )
    note = (
        "The public series GSE68086 (Best et al., 2015) stands in for the platelet cohort of the "
        "multi-study paper (Moran and Krishnan, 2026), which is not public: what that paper says "
        "of its factors can neither be confirmed nor refuted here."
    )
    return Cohort(_named_by_symbol(adata), False, note)


def synthetic_cohort(truth: PlateletTruth) -> AnnData:
    """Simulated counts as an AnnData whose names say that they are simulated."""
    obs = pd.DataFrame(
        {
            DISEASE: [f"group {m + 1}" for m in truth.study.tolist()],
            BATCH: [f"batch {t + 1}" for t in truth.nuisance.tolist()],
        },
        index=[f"synthetic sample {i + 1}" for i in range(len(truth.x))],
    )
    genes = [f"synthetic{j + 1}" for j in range(truth.x.shape[1])]
    var = pd.DataFrame({"symbol": genes}, index=genes)
    return AnnData(truth.x.numpy(), obs=obs, var=var, uns={"source": SYNTHETIC})


def gene_sets_in(folder: str | Path | None = None) -> dict[str, frozenset[str]]:
    """Sets of all ``*.gmt`` files in a folder, by name of the file and the set.

    Parameters
    ----------
    folder
        Folder; None looks for ``genesets`` in ``PROBINTERP_DATA`` and gives no set without it.

    Raises
    ------
    FileNotFoundError
        If ``folder`` is given and holds no such file.
    """
    place = Path(os.environ.get("PROBINTERP_DATA", "../shared/data")) / "genesets"
    files = sorted((place if folder is None else Path(folder)).glob("*.gmt"))
    if folder is not None and not files:
        raise FileNotFoundError(f"no file *.gmt with gene sets in {folder}.")
    return {
        f"{file.name.removesuffix('.gmt')}: {name}": genes
        for file in files
        for name, genes in read_gmt(file).items()
    }


def _named_by_symbol(adata: AnnData) -> AnnData:
    """Genes by their symbol, those without one or with one of several genes by their identifier."""
    adata = adata.copy()
    symbol = adata.var["symbol"].astype(object).fillna("").astype(str)
    good = (symbol != "") & ~symbol.duplicated(keep=False)
    adata.var["gene_id"] = adata.var_names.to_numpy()
    adata.var_names = np.where(good, symbol, adata.var_names).tolist()
    return adata
