"""Real data that arrive with packages this one depends on."""

from __future__ import annotations

import warnings

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse

LARGEST_ERROR = 0.1  # rounding to three decimals moves a count by at most 0.082


def pbmc68k() -> AnnData:
    r"""UMI counts of 700 peripheral blood cells and 765 variable genes.

    Recovered from the file that scanpy ships, which holds
    :math:`\log(1 + 10^4 x_{ij} / n_i)` rounded to three decimals and the total counts n.

    Returns
    -------
    AnnData
        Counts as CSR float32 in ``X``; ``obs["n_counts"]`` has the totals over all genes of the
        original data, which is the right library size (the 765 genes are a choice), and
        ``obs["bulk_labels"]`` the cell types.

    Raises
    ------
    ValueError
        If the shipped file does not give whole numbers.

    References
    ----------
    Massively parallel digital transcriptional profiling of single cells (Zheng et al., 2017).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the shipped file has an old layout
        warnings.simplefilter("ignore", UserWarning)
        source = sc.datasets.pbmc68k_reduced()
    raw = source.raw.X
    logged = np.asarray(raw.toarray() if sparse.issparse(raw) else raw, dtype=np.float64)
    exact = np.expm1(logged) * source.obs["n_counts"].to_numpy(np.float64)[:, None] / 1e4
    counts = np.rint(exact)
    error = np.abs(exact - counts).max()
    if error > LARGEST_ERROR:
        raise ValueError(
            f"scanpy's pbmc68k_reduced no longer holds recoverable counts: they miss whole "
            f"numbers by up to {error:.3f}, expected at most {LARGEST_ERROR}."
        )
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    adata = AnnData(matrix, obs=source.obs.copy(), var=source.raw.var.copy())
    adata.uns["source"] = "10x Genomics PBMC 68k (Zheng et al. 2017), as shipped with scanpy"
    return adata
