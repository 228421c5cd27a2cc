"""The same numbers come out of every storage format, and fits on them agree."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from probinterp.genomics import from_anndata
from probinterp.inference import fit
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import VAE

N, G = 2500, 7  # three blocks of a file


def counts():
    x = np.random.default_rng(1).poisson(1.0, (N, G))
    x[:, 3] += 1
    return x


def named(x):
    obs = pd.DataFrame({"study": np.resize(list("ab"), N)}, index=[f"c{i}" for i in range(N)])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(G)]))


def with_duplicates(x):
    """CSR in which every entry of 2 or more is stored as 1 and the rest, columns unsorted."""
    rows, columns = np.nonzero(x)
    values, large = x[rows, columns], x[rows, columns] > 1
    row = np.concatenate([rows, rows[large]])
    column = np.concatenate([columns, columns[large]])
    value = np.concatenate([np.where(large, 1, values), values[large] - 1]).astype(np.float32)
    order = np.argsort(row, kind="stable")
    indptr = np.concatenate([[0], np.bincount(row, minlength=N).cumsum()])
    return sparse.csr_matrix((value[order], column[order], indptr), shape=x.shape)


def with_zeros(x):
    every = np.tile(np.arange(G), N)
    return sparse.csr_matrix(
        (x.ravel().astype(np.float32), every, np.arange(0, N * G + 1, G)), shape=x.shape
    )


def stored(adata, path, **options):
    adata.write_h5ad(path, **options)
    return ad.read_h5ad(path, backed="r")


STORAGE = {
    "float64": lambda x, p: named(x.astype(np.float64)),
    "float32": lambda x, p: named(x.astype(np.float32)),
    "float16": lambda x, p: named(x.astype(np.float16)),
    "int64": lambda x, p: named(x),
    "int8": lambda x, p: named(x.astype(np.int8)),
    "uint16": lambda x, p: named(x.astype(np.uint16)),
    "Fortran order": lambda x, p: named(np.asfortranarray(x)),
    "view": lambda x, p: named(x[::-1].copy())[::-1],
    "csr": lambda x, p: named(sparse.csr_matrix(x)),
    "csr uint8": lambda x, p: named(sparse.csr_matrix(x.astype(np.uint8))),
    "csr array": lambda x, p: named(sparse.csr_array(x.astype(np.float32))),
    "csr with duplicates": lambda x, p: named(with_duplicates(x)),
    "csr with stored zeros": lambda x, p: named(with_zeros(x)),
    "csr view": lambda x, p: named(sparse.csr_matrix(x[::-1]))[::-1],
    "csc": lambda x, p: named(sparse.csc_matrix(x)),
    "csc view": lambda x, p: named(sparse.csc_matrix(x[:, ::-1]))[:, ::-1],
    "backed csr": lambda x, p: stored(named(sparse.csr_matrix(x)), p),
    "backed csr gzip": lambda x, p: stored(named(sparse.csr_matrix(x)), p, compression="gzip"),
    "backed csr with duplicates": lambda x, p: stored(named(with_duplicates(x)), p),
    "backed dense": lambda x, p: stored(named(x.astype(np.float32)), p),
    "backed view": lambda x, p: stored(named(sparse.csr_matrix(x[::-1])), p)[np.arange(N)[::-1]],
    "view of backed dense": lambda x, p: stored(named(x[::-1].copy()), p)[np.arange(N)[::-1]],
}


@pytest.fixture(scope="module")
def x():
    return counts()


def dense(batch):
    return batch.x.to_dense().numpy()


@pytest.mark.parametrize("make", STORAGE.values(), ids=STORAGE)
def test_every_format_gives_the_same_numbers(make, x, tmp_path):
    data = from_anndata(make(x, tmp_path / "a.h5ad"))
    library = x.sum(1)
    generator = np.random.default_rng(2)
    indexes = [
        np.arange(N),
        np.array([5]),
        np.array([7, 7, 2, 7]),
        generator.integers(0, N, 300),
        generator.permutation(N)[:100],
        np.array([], dtype=np.int64),
    ]
    assert np.array_equal(dense(data.batch()), x)
    for index in indexes:
        batch = data.batch(torch.from_numpy(index))
        assert batch.x.dtype == torch.float32
        assert batch.x.shape == (len(index), G)
        assert np.array_equal(dense(batch), x[index])
        expected = torch.from_numpy((library / np.median(library)).astype(np.float32))[index]
        assert torch.equal(batch.size_factor, expected)


@pytest.mark.parametrize("form", ["float32", "csr", "csc", "backed csr", "backed dense"])
@pytest.mark.parametrize("seed", range(2))
def test_like_realigns_genes_by_name_and_ignores_the_others(form, seed, x, tmp_path):
    generator = np.random.default_rng(seed)
    training = from_anndata(named(sparse.csr_matrix(x))[:, [4, 0, 6, 3]].copy())
    order = generator.permutation(G)
    source = STORAGE[form](x[:, order], tmp_path / "a.h5ad")
    source.var_names = [f"g{j}" for j in order]
    held = from_anndata(source, like=training, drop_empty=True)
    assert held.var_names.tolist() == ["g4", "g0", "g6", "g3"]
    assert np.array_equal(dense(held.batch()), x[:, [4, 0, 6, 3]])
    library = x[:, [4, 0, 6, 3]].sum(1)
    median = np.median(library)
    assert held.batch().size_factor.numpy() == pytest.approx(library / median, rel=1e-6)


@pytest.mark.parametrize("form", ["int64", "csr", "csc", "backed csr"])
def test_subset_and_permuted_cells_agree(form, x, tmp_path):
    order = np.random.default_rng(3).permutation(N)
    data = from_anndata(STORAGE[form](x, tmp_path / "a.h5ad"), study_key="study")
    shuffled = from_anndata(named(x)[order].copy(), study_key="study")
    first, second = data.subset(order).batch(), shuffled.batch()
    assert np.array_equal(dense(first), dense(second))
    assert torch.equal(first.size_factor, second.size_factor)
    assert torch.equal(first.study, second.study)
    mask = x[:, 0] > 1
    assert np.array_equal(dense(data.subset(mask).batch()), x[mask])


@pytest.mark.parametrize("form", ["float32", "csr", "csc", "backed csr", "backed dense"])
def test_dropped_cells_and_genes_are_reported(form, x, tmp_path):
    x = x.copy()
    x[[3, 2000]] = 0
    x[:, 5] = 0
    source = STORAGE[form](x, tmp_path / "a.h5ad")
    data = from_anndata(source, drop_empty=True)
    assert data.report.dropped_obs == ("c3", "c2000")
    assert data.report.dropped_vars == ("g5",)
    kept = np.setdiff1d(np.arange(N), [3, 2000])
    assert np.array_equal(dense(data.batch()), np.delete(x, 5, axis=1)[kept])
    assert data.obs_names.tolist() == [f"c{i}" for i in kept]


def test_later_changes_of_the_source_do_not_reach_the_data(x):
    for make in (STORAGE["float32"], STORAGE["csr"]):
        adata = make(x, None)
        data = from_anndata(adata)
        (adata.X.data if sparse.issparse(adata.X) else adata.X)[:] = 9
        assert np.array_equal(dense(data.batch()), x)


def fitted(data):
    torch.manual_seed(0)
    model = VAE(G, 2, n_hidden=8, likelihood=NegativeBinomialLikelihood(G))
    history = fit(model, data, max_epochs=3, batch_size=256, seed=1, device="cpu", progress=False)
    return [record.loss for record in history.records], model.state_dict()


class Blockwise:
    """Data in memory, read in the block order of a file."""

    def __init__(self, data, block_size):
        self.data, self.block_size = data, block_size

    def __len__(self):
        return len(self.data)

    def batch(self, index=None):
        return self.data.batch(index)


@pytest.mark.parametrize("form", ["backed csr", "backed dense"])
def test_a_fit_on_a_file_equals_a_fit_in_memory(form, x, tmp_path):
    backed = from_anndata(STORAGE[form](x, tmp_path / "a.h5ad"))
    memory = from_anndata(named(sparse.csr_matrix(x)))
    assert (backed.block_size, memory.block_size) == (1024, 1)
    losses, weights = fitted(backed)
    expected, other = fitted(Blockwise(memory, backed.block_size))
    assert losses == expected
    assert losses[-1] < losses[0]
    assert all(torch.equal(weights[name], other[name]) for name in weights)
