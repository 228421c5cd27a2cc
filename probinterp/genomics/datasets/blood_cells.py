"""Blood cells that scanpy ships, as counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from probinterp.genomics.compat import read_pbmc68k_reduced

TOLERANCE = 0.1  # three decimals of log1p at the deepest cell leave 0.082


def pbmc68k() -> AnnData:
    r"""Peripheral blood mononuclear cells: 700 cells, 765 genes, UMI counts.

    scanpy ships log-normalised values :math:`y = \log(1 + 10^4 x / n)` rounded to three
    decimals, with the total counts n of each cell over all genes of the original matrix. The counts
    are the integers next to :math:`(e^y - 1)\, n / 10^4`.

    Returns
    -------
    AnnData
        ``X`` is CSR in float32 with the counts; ``obs`` has ``bulk_labels`` (10 cell types),
        ``n_counts`` (library size: use ``size_factor_key="n_counts"``, the 765 genes hold a
        fifth of the counts), ``n_genes``, ``percent_mito``, ``phase`` and ``louvain``;
        ``obsm["X_umap"]`` is scanpy's embedding; ``uns["provenance"]`` names the source.

    Raises
    ------
    ValueError
        If the installed scanpy ships another file, so that the counts cannot be recovered.

    Examples
    --------
    >>> from probinterp.genomics import datasets
    >>> datasets.pbmc68k().shape
    (700, 765)

    References
    ----------
    Massively parallel digital transcriptional profiling of single cells (Zheng et al., 2017).
    """
    shipped = read_pbmc68k_reduced()
    counts = recovered_counts(shipped.raw.X, shipped.obs["n_counts"].to_numpy())
    kept = ["bulk_labels", "n_counts", "n_genes", "percent_mito", "phase", "louvain"]
    return AnnData(
        X=counts,
        obs=shipped.obs[kept].copy(),
        var=pd.DataFrame(index=shipped.raw.var_names.copy()),
        obsm={"X_umap": np.array(shipped.obsm["X_umap"])},
        uns={
            "provenance": {
                "title": "Fresh 68k PBMCs (donor A), 10x Genomics; Zheng et al., 2017",
                "source": "scanpy.datasets.pbmc68k_reduced(), raw",
                "processing": "counts = rint(expm1(raw.X) * n_counts / 1e4)",
                "licence": "scanpy, which ships the file, is BSD-3-Clause",
            }
        },
    )


def recovered_counts(log_normalised: sp.csr_matrix, library_size: np.ndarray) -> sp.csr_matrix:
    r"""Counts behind :math:`\log(1 + 10^4 x / n)`, CSR in float32.

    Parameters
    ----------
    log_normalised
        Sparse matrix y, (N, G).
    library_size
        Total counts n of each cell, (N,).

    Raises
    ------
    ValueError
        If a value is further than 0.1 from an integer.
    """
    rows = sp.csr_matrix(log_normalised, dtype=np.float64, copy=True)
    per_cell = np.repeat(library_size.astype(np.float64), np.diff(rows.indptr))
    exact = np.expm1(rows.data) * per_cell / 1e4
    rows.data = np.rint(exact)
    distance = float(np.abs(exact - rows.data).max(initial=0.0))
    if not distance <= TOLERANCE:
        raise ValueError(
            f"values are up to {distance:.3f} from an integer count, expected at most {TOLERANCE}: "
            "not log1p of counts per 10,000, or rounded too coarsely."
        )
    rows.eliminate_zeros()
    return rows.astype(np.float32)
