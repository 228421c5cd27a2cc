"""Rows in a file: a damaged file is refused, whichever array is damaged."""

import time

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from probinterp.genomics import from_anndata


def counts():
    return np.random.default_rng(0).poisson(2.0, (12, 5)).astype(np.float32) + 1


def damaged(path, name, change):
    names = pd.DataFrame(index=[f"cell{i}" for i in range(12)])
    genes = pd.DataFrame(index=[f"gene{j}" for j in range(5)])
    ad.AnnData(sparse.csr_matrix(counts()), obs=names, var=genes).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values = change(file[f"X/{name}"][:])
        del file[f"X/{name}"]
        file[f"X/{name}"] = values
    return ad.read_h5ad(path, backed="r")


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


DAMAGES = {
    "index too large": ("indices", put(3, 99)),
    "negative index": ("indices", put(3, -1)),
    "falling pointers": ("indptr", put(4, 1)),
    "negative pointer": ("indptr", put(3, -5)),
    "entries before the first row": ("indptr", put(0, 2)),
    "entries after the last row": ("indptr", put(-1, 58)),
    "pointers beyond the end": ("indptr", put(-1, 10_000)),
    "too few pointers": ("indptr", lambda a: a[:-1]),
    "too many pointers": ("indptr", lambda a: np.append(a, a[-1])),
    "too few values": ("data", lambda a: a[:-1]),
    "too few indices": ("indices", lambda a: a[:-1]),
}


@pytest.mark.parametrize(("name", "change"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(name, change, tmp_path):
    adata = damaged(tmp_path / "a.h5ad", name, change)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="X is not a valid csr matrix: .*ind(ex|ices|ptr)"):
        from_anndata(adata)
    assert time.perf_counter() - started < 1
