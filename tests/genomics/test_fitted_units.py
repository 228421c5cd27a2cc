import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from probinterp.genomics import from_anndata
from probinterp.genomics.fitted_units import (
    fingerprints,
    refuse_fitted_units,
    save_fitted_units,
)


@pytest.fixture
def cells():
    counts = np.random.default_rng(0).poisson(2, (30, 5)).astype(np.float32) + 1
    adata = anndata.AnnData(counts)
    adata.obs_names = [f"cell{i}" for i in range(30)]
    return adata


def test_the_same_cell_is_known_dense_sparse_and_reordered(cells):
    dense = fingerprints(from_anndata(cells))
    assert len(set(dense.tolist())) == 30
    sparse = cells.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    assert (fingerprints(from_anndata(sparse)) == dense).all()
    assert (fingerprints(from_anndata(cells[::-1].copy())) == dense[::-1]).all()


def test_name_and_values_both_count(cells):
    renamed = cells.copy()
    renamed.obs_names = [f"other{i}" for i in range(30)]
    changed = cells.copy()
    changed.X = changed.X + 1
    known = fingerprints(from_anndata(cells))
    for other in (renamed, changed):
        assert not np.isin(fingerprints(from_anndata(other)), known).any()


def test_cells_of_the_fit_are_refused(cells, tmp_path):
    save_fitted_units(from_anndata(cells[:20].copy()), tmp_path)
    refuse_fitted_units(from_anndata(cells[20:].copy()), tmp_path)
    with pytest.raises(ValueError, match="5 of the 15 cells to check were used to fit .*'cell15'"):
        refuse_fitted_units(from_anndata(cells[15:].copy()), tmp_path)


def test_models_without_fingerprints_refuse_nothing_and_damage_is_said(cells, tmp_path):
    refuse_fitted_units(from_anndata(cells), tmp_path)
    (tmp_path / "fitted_units.npy").write_bytes(b"not numbers")
    with pytest.raises(ValueError, match="fitted_units.npy is damaged"):
        refuse_fitted_units(from_anndata(cells), tmp_path)


def test_objects_in_the_file_are_not_loaded(cells, tmp_path):
    np.save(tmp_path / "fitted_units.npy", np.array([pd.Timestamp(0)], dtype=object))
    with pytest.raises(ValueError, match="is damaged"):
        refuse_fitted_units(from_anndata(cells), tmp_path)
