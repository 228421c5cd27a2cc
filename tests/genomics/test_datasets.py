import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from probinterp.genomics import datasets, from_anndata
from probinterp.genomics.datasets import recovered_counts

GROUP_SIZES = {
    "Dendritic": 240,
    "CD14+ Monocyte": 129,
    "CD19+ B": 95,
    "CD4+/CD25 T Reg": 68,
    "CD8+ Cytotoxic T": 54,
    "CD8+/CD45RA+ Naive Cytotoxic": 43,
    "CD56+ NK": 31,
    "CD4+/CD45RO+ Memory": 19,
    "CD34+": 13,
    "CD4+/CD45RA+/CD25- Naive T": 8,
}


@pytest.fixture(scope="module")
def pbmc():
    return datasets.pbmc68k()


def test_pbmc68k_holds_the_counts_that_the_specification_describes(pbmc):
    counts = pbmc.X
    assert pbmc.shape == (700, 765)
    assert counts.dtype == np.float32
    assert (counts.data == np.rint(counts.data)).all()
    assert counts.data.min() == 1
    assert counts.max() == 259
    assert counts.nnz / 700 / 765 == pytest.approx(0.326, abs=5e-4)
    assert pbmc.obs["bulk_labels"].value_counts().to_dict() == GROUP_SIZES
    assert "counts = rint" in pbmc.uns["provenance"]["processing"]


def test_pbmc68k_counts_give_back_the_shipped_values(pbmc):
    import scanpy as sc

    shipped = sc.datasets.pbmc68k_reduced()
    depth = pbmc.obs["n_counts"].to_numpy(dtype=float)[:, None]
    again = np.log1p(pbmc.X.toarray() * 1e4 / depth)
    assert np.abs(again - shipped.raw.X.toarray()).max() < 6e-4  # three decimals
    assert (pbmc.var_names == shipped.raw.var_names).all()


def test_pbmc68k_size_factors_come_from_the_whole_transcriptome(pbmc):
    data = from_anndata(pbmc, size_factor_key="n_counts")
    rows = np.asarray(pbmc.X.sum(axis=1)).ravel()
    assert data.median_library_size == 3333.5
    assert (rows / data.library_size).mean() == pytest.approx(0.198, abs=1e-3)


def test_pbmc68k_leaves_the_filters_of_warnings_alone():
    before = list(warnings.filters)
    datasets.pbmc68k()
    assert warnings.filters == before


def test_recovered_counts_refuse_values_that_are_not_log_counts():
    values = sp.csr_matrix(np.log1p(np.array([[3.4, 0.0], [2.0, 1.0]])))
    with pytest.raises(ValueError, match=r"up to 0\.400 from an integer count, expected at most"):
        recovered_counts(values, np.array([1e4, 1e4]))
    with pytest.raises(ValueError, match=r"up to nan"):
        recovered_counts(values, np.array([np.nan, 1e4]))
