import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probinterp.genomics import from_anndata
from probinterp.genomics.backed import BLOCK_SIZE, CACHED_BLOCKS, BackedRows
from probinterp.inference.data import Data, minibatch_order, to_device

N, G = 40, 12


def make(n=N, g=G, seed=0, convert=np.asarray, dtype=np.float32):
    counts = np.random.default_rng(seed).poisson(1.0, (n, g))
    counts[:, 0] += 1  # no cell is empty
    counts[0] += 1  # no gene is
    obs = pd.DataFrame(
        {
            "depth": counts.sum(1) * 5.0,
            "donor": pd.Categorical(np.resize(["d2", "d1", "d3"], n)),
            "number": np.resize([7, 3], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(g)])
    return ad.AnnData(convert(counts.astype(dtype)), obs=obs, var=var)


def dense(data, index=None):
    return to_device(data.batch(index), torch.device("cpu")).x


def with_shuffled_indices(counts):
    """CSR whose column indices are not sorted and whose entries are partly stored twice."""
    whole = sp.coo_matrix(counts)
    row, column, value = (np.concatenate([a, a]) for a in (whole.row, whole.col, whole.data))
    value[: len(whole.data)] -= 1
    value[len(whole.data) :] = 1
    order = np.random.default_rng(0).permutation(len(row))
    row, column, value = row[order], column[order], value[order]
    order = np.argsort(row, kind="stable")
    pointers = np.concatenate([[0], np.bincount(row, minlength=len(counts)).cumsum()])
    return sp.csr_matrix((value[order], column[order], pointers), shape=counts.shape)


def on_disk(adata, path):
    adata.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


FORMATS = {
    "dense float64": lambda p: make(dtype=np.float64),
    "dense int64": lambda p: make(dtype=np.int64),
    "dense uint8": lambda p: make(dtype=np.uint8),
    "dense float16": lambda p: make(dtype=np.float16),
    "fortran order": lambda p: make(convert=np.asfortranarray),
    "csr": lambda p: make(convert=sp.csr_matrix),
    "csr int32": lambda p: make(convert=sp.csr_matrix, dtype=np.int32),
    "csr_array": lambda p: make(convert=sp.csr_array),
    "csc": lambda p: make(convert=sp.csc_matrix),
    "csr shuffled and doubled": lambda p: make(convert=with_shuffled_indices),
    "view of dense": lambda p: make(n=N, g=G)[:, :],
    "view of csr": lambda p: make(convert=sp.csr_matrix)[:, :],
    "backed dense": lambda p: on_disk(make(), p),
    "backed csr": lambda p: on_disk(make(convert=sp.csr_matrix), p),
    "backed csr int64": lambda p: on_disk(make(convert=sp.csr_matrix, dtype=np.int64), p),
    "backed shuffled": lambda p: on_disk(make(convert=with_shuffled_indices), p),
    "view of backed csr": lambda p: on_disk(make(convert=sp.csr_matrix), p)[:, :],
}


@pytest.mark.parametrize("load", FORMATS.values(), ids=FORMATS)
def test_every_storage_format_gives_the_same_numbers(load, tmp_path):
    expected = make().X
    data = from_anndata(load(tmp_path / "a.h5ad"), study_key="donor")
    index = torch.tensor([5, 0, 39, 5, 17])
    batch = data.batch(index)
    library = expected.sum(1)
    assert isinstance(data, Data)
    assert batch.x.dtype == torch.float32
    assert np.array_equal(dense(data).numpy(), expected)
    assert np.array_equal(dense(data, index).numpy(), expected[index.numpy()])
    assert np.array_equal(batch.size_factor, (library / np.median(library))[index].astype("f4"))
    assert data.study_names == ("d1", "d2", "d3")
    assert batch.study.tolist() == [2, 1, 1, 2, 2]
    assert np.array_equal(dense(data.subset(index)).numpy(), expected[index.numpy()])


def test_entries_stored_twice_are_added_up_and_the_source_is_as_it_was():
    adata = make(convert=with_shuffled_indices)
    before = [array.copy() for array in (adata.X.data, adata.X.indices, adata.X.indptr)]
    x = from_anndata(adata).batch().x
    assert len(x.values()) == np.count_nonzero(make().X) < len(before[0])
    for array, old in zip((adata.X.data, adata.X.indices, adata.X.indptr), before, strict=True):
        assert np.array_equal(array, old)


def test_np_matrix_is_read_as_an_array():
    with pytest.warns(UserWarning, match="should not be a np.matrix"):  # anndata's own words
        adata = make(convert=lambda counts: counts.view(np.matrix))
    assert np.array_equal(dense(from_anndata(adata)).numpy(), make().X)


def test_sparse_source_stays_sparse_and_stored_zeros_go():
    adata = make(convert=sp.csr_matrix)
    adata.X.data[3:5] = 0
    data = from_anndata(adata)
    assert data.batch().x.layout == torch.sparse_csr
    assert data.batch(torch.arange(3)).x.layout == torch.sparse_csr
    assert len(data.batch().x.values()) == adata.X.nnz - 2
    assert data.report.storage == "csr"
    assert adata.X.nnz == make(convert=sp.csr_matrix).X.nnz  # the source is as it was


def test_later_changes_of_the_anndata_do_not_reach_the_data():
    for convert in (np.asarray, sp.csr_matrix):
        adata = make(convert=convert)
        data = from_anndata(adata)
        values = adata.X.data if sp.issparse(adata.X) else adata.X
        values[...] = 99
        assert np.array_equal(dense(data).numpy(), make().X)


def test_memory_of_sparse_input_does_not_grow_with_the_dense_size():
    columns = np.arange(200_000) * 7919 % 5_000  # ten genes in each cell
    pointers = np.arange(0, 200_001, 10)
    counts = sp.csr_matrix((np.ones(200_000, "f4"), columns, pointers), shape=(20_000, 5_000))
    adata = ad.AnnData(counts)
    tracemalloc.start()
    from_anndata(adata, drop_empty=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
    assert peak < 8 * stored + 16e6  # dense would be 400 MB, this is 1.8 MB


def test_study_column_of_integers_and_unused_categories():
    adata = make()
    adata.obs["donor"] = adata.obs["donor"].cat.add_categories(["d0"])
    data = from_anndata(adata, study_key="donor")
    assert data.study_names == ("d1", "d2", "d3")
    assert data.report.unused_studies == ("d0",)
    numbers = from_anndata(adata, study_key="number")
    assert numbers.study_names == ("3", "7")
    assert numbers.batch().study.tolist() == [1, 0] * (N // 2)


def test_size_factors_use_the_given_column_and_median():
    adata = make()
    library = adata.X.sum(1, dtype=np.float64)
    by_column = from_anndata(adata, size_factor_key="depth")
    assert torch.equal(by_column.batch().size_factor, from_anndata(adata).batch().size_factor)
    assert by_column.median_library_size == 5 * np.median(library)
    given = from_anndata(adata, median_library_size=10.0)
    assert np.array_equal(given.batch().size_factor, (library / 10).astype("f4"))
    values = from_anndata(adata, counts=False)
    assert values.batch().size_factor is None
    assert values.median_library_size is None


def test_values_other_than_counts_are_read_on_request():
    adata = make()
    adata.X = np.log1p(adata.X) - 0.5
    assert np.array_equal(dense(from_anndata(adata, counts=False)).numpy(), adata.X)
    assert not from_anndata(adata, counts=False).report.counts


def test_booleans_are_zero_and_one():
    adata = make()
    adata.X = adata.X > 0
    assert np.array_equal(dense(from_anndata(adata)).numpy(), make().X > 0)


def test_library_sizes_are_exact_where_float32_sums_are_not():
    adata = make(n=3, g=4)
    adata.X[:] = [[2**24, 1, 1, 1], [2**24, 2**24, 1, 0], [1, 1, 1, 1]]
    expected = [2**24 + 3, 2**25 + 1, 4]
    assert from_anndata(adata).library_size.tolist() == expected
    adata.X = sp.csr_matrix(adata.X)
    assert from_anndata(adata).library_size.tolist() == expected


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("backed", [False, True])
def test_empty_cells_and_genes_are_dropped_on_request_and_reported(convert, backed, tmp_path):
    adata = make()
    adata.X[[3, 20]] = 0
    adata.X[:, 5] = 0
    adata.X = convert(adata.X)
    adata = on_disk(adata, tmp_path / "a.h5ad") if backed else adata
    data = from_anndata(adata, drop_empty=True, study_key="donor")
    rows, columns = np.delete(np.arange(N), [3, 20]), np.delete(np.arange(G), 5)
    assert data.report.dropped_obs == ("cell3", "cell20")
    assert data.report.dropped_vars == ("gene5",)
    assert "dropped_obs: 2: 'cell3', 'cell20'" in str(data.report)
    assert list(data.obs_names) == [f"cell{i}" for i in rows]
    assert np.array_equal(dense(data).numpy(), make().X[np.ix_(rows, columns)])
    assert (data.batch().size_factor > 0).all()
    assert data.batch().study.tolist() == [[1, 0, 2][i % 3] for i in rows]


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("backed", [False, True])
def test_permuted_query_is_put_into_the_order_of_the_training_data(convert, backed, tmp_path):
    if backed and convert is sp.csc_matrix:
        return
    train = from_anndata(make(seed=1), study_key="donor")
    query = make(seed=2)
    names = np.array(query.var_names)
    extra = np.column_stack([query.X, np.full(N, 1000.0, dtype="f4")])  # gene not in training
    order = np.random.default_rng(0).permutation(G + 1)
    shuffled = ad.AnnData(convert(extra[:, order]), obs=query.obs.iloc[:, :2])
    shuffled.var_names = np.append(names, "novel")[order]
    shuffled = on_disk(shuffled, tmp_path / "q.h5ad") if backed else shuffled
    data = from_anndata(shuffled, like=train, study_key="donor")
    assert np.array_equal(dense(data).numpy(), query.X)
    assert data.report.reordered_vars
    assert data.report.ignored_vars == ("novel",)
    expected = query.X.sum(1) / np.median(make(seed=1).X.sum(1))  # training median
    assert np.allclose(data.batch().size_factor, expected, rtol=1e-7)
    assert list(data.var_names) == list(train.var_names)


def test_query_keeps_genes_that_it_never_shows_and_the_training_studies():
    train = from_anndata(make(), study_key="donor")
    query = make(n=6, seed=3)
    query.X[:, 4] = 0
    query.obs["donor"] = ["d3", "d3", "d1", "d1", "d3", "d1"]
    data = from_anndata(query, like=train, study_key="donor")
    assert data.n_vars == G
    assert data.study_names == ("d1", "d2", "d3")
    assert data.batch().study.tolist() == [2, 2, 0, 0, 2, 0]
    assert not data.report.reordered_vars


def test_subset_keeps_names_values_and_the_meaning_of_size_factors():
    data = from_anndata(make(convert=sp.csr_matrix), study_key="donor")
    mask = np.zeros(N, dtype=bool)
    mask[[1, 4, 30]] = True
    part = data.subset(mask)
    assert list(part.obs_names) == ["cell1", "cell4", "cell30"]
    assert torch.equal(part.batch().size_factor, data.batch().size_factor[[1, 4, 30]])
    assert torch.equal(dense(part), dense(data)[[1, 4, 30]])
    rescaled = part.with_median_library_size(2 * data.median_library_size)
    assert torch.equal(rescaled.batch().size_factor, part.batch().size_factor / 2)
    assert torch.equal(rescaled.batch().study, part.batch().study)


@pytest.mark.parametrize("index", [[-1], [N], [0, 99]])
def test_subset_refuses_positions_out_of_range(index):
    with pytest.raises(IndexError, match=rf"positions must lie in 0\.\.{N - 1}"):
        from_anndata(make()).subset(index)
    with pytest.raises(IndexError, match=r"mask has 3 entries for 40 cells"):
        from_anndata(make()).subset([True, False, True])
    with pytest.raises(TypeError, match=r"positions or a Boolean mask .* dtype float64"):
        from_anndata(make()).subset([0.5])


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(15)), st.permutations(range(6)))
def test_permuting_cells_and_genes_permutes_the_data(cells, genes):
    adata = make(n=15, g=6, convert=sp.csr_matrix)
    plain = from_anndata(adata, study_key="donor")
    permuted = from_anndata(adata[cells, genes].copy(), study_key="donor")
    assert torch.equal(dense(permuted), dense(plain)[cells][:, genes])
    assert torch.equal(permuted.batch().size_factor, plain.batch().size_factor[cells])
    assert torch.equal(permuted.batch().study, plain.batch().study[cells])
    aligned = from_anndata(adata[:, genes].copy(), like=from_anndata(adata))
    assert torch.equal(dense(aligned), dense(plain))


class CountingMatrix:
    """Passes reads on to a backed matrix and counts them."""

    def __init__(self, matrix):
        self.matrix, self.reads = matrix, 0

    def __getitem__(self, rows):
        self.reads += 1
        return self.matrix[rows]


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
def test_a_shuffled_epoch_reads_every_block_once(convert, tmp_path):
    n = (2 * CACHED_BLOCKS + 3) * BLOCK_SIZE + 11
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (n, 4)).astype("f4")
    counts[:, 0] += 1
    backed = on_disk(ad.AnnData(convert(counts)), tmp_path / "a.h5ad")
    data = from_anndata(backed)
    data = data.subset(np.sort(rng.permutation(n)[: n - 3 * BLOCK_SIZE]))
    assert data.block_size == BLOCK_SIZE
    rows = data.data
    assert isinstance(rows, BackedRows)
    rows.matrix = CountingMatrix(rows.matrix)
    seen = []
    for index in minibatch_order(len(data), 500, seed=0, epoch=0, block_size=data.block_size):
        assert np.array_equal(dense(data, index), counts[rows.rows[index]])
        seen.append(index)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(len(data)))
    assert rows.matrix.reads == -(-len(data) // BLOCK_SIZE)


def test_backed_rows_in_any_order_and_nested_subsets(tmp_path):
    backed = on_disk(make(n=5000, convert=sp.csr_matrix), tmp_path / "a.h5ad")
    data = from_anndata(backed)
    order = np.random.default_rng(1).permutation(5000)[:3000]
    part = data.subset(order).subset(np.arange(2999, -1, -2))
    assert np.array_equal(dense(part).numpy(), make(n=5000).X[order[::-2]])
    few = data.subset([0, 4999, 2500, 0])  # far apart: read one by one
    assert np.array_equal(dense(few).numpy(), make(n=5000).X[[0, 4999, 2500, 0]])
    assert dense(few, torch.zeros(0, dtype=torch.int64)).shape == (0, G)


def test_one_cell_and_one_gene_work():
    one = from_anndata(make(n=1, g=1))
    assert one.batch().size_factor.tolist() == [1.0]
    assert one.n_obs == one.n_vars == 1


@pytest.mark.parametrize("backed", [False, True], ids=["memory", "backed"])
def test_batches_travel_as_nuisance_through_subset_and_rescaling(backed, tmp_path):
    adata = make(convert=sp.csr_matrix)
    adata.obs["run"] = np.resize(["r2", "r3", "r1"], N)
    adata = on_disk(adata, tmp_path / "a.h5ad") if backed else adata
    data = from_anndata(adata, study_key="donor", batch_key="run")
    assert data.nuisance_names == ("r1", "r2", "r3")
    index = torch.tensor([5, 0, 39, 4])
    batch = data.batch(index)
    assert batch.nuisance.dtype == torch.int64
    assert batch.nuisance.tolist() == [0, 1, 1, 2]
    assert batch.study.tolist() == [2, 1, 1, 0]
    rescaled = data.subset(index).with_median_library_size(3.0)
    assert isinstance(rescaled.data, BackedRows) == backed
    for part in (data.subset(index), rescaled):
        assert torch.equal(part.batch().nuisance, batch.nuisance)
        assert torch.equal(part.batch().study, batch.study)
        assert part.nuisance_names == data.nuisance_names
    assert from_anndata(adata).batch(index).nuisance is None
    assert (data.report.study_key, data.report.batch_key) == ("donor", "run")


def test_batches_of_a_query_are_those_of_the_training_data():
    train = from_anndata(make(), batch_key="donor")
    query = make(n=4, seed=1)
    query.obs["donor"] = ["d3", "d1", "d1", "d3"]
    assert from_anndata(query, like=train, batch_key="donor").batch().nuisance.tolist() == [
        2,
        0,
        0,
        2,
    ]
    query.obs["donor"] = ["d3", "d9", "d1", "d3"]
    with pytest.raises(KeyError, match=r"has batches that the reference data lack: 'd9'; known:"):
        from_anndata(query, like=train, batch_key="donor")
    with pytest.raises(ValueError, match=r"batch_key=None, but the batches of the reference data"):
        from_anndata(query, like=train)


@pytest.mark.parametrize("backed", [False, True], ids=["memory", "backed"])
def test_unknown_studies_are_read_on_request_only(backed, tmp_path):
    train = from_anndata(make(), study_key="donor")
    query = make(n=5, seed=1, convert=sp.csr_matrix)
    query.obs["donor"] = ["d9", "d3", "d1", "d7", "d9"]
    query = on_disk(query, tmp_path / "a.h5ad") if backed else query
    with pytest.raises(KeyError, match=r"studies that the reference data lack: 'd7', 'd9'"):
        from_anndata(query, like=train, study_key="donor")
    data = from_anndata(query, like=train, study_key="donor", unknown_study="shared")
    assert data.batch().study.tolist() == [-1, 2, 0, -1, -1]
    assert data.study_names == train.study_names
    assert data.report.unknown_studies == ("d7", "d9")
    assert "unknown_studies: 2: 'd7', 'd9'" in str(data.report)
    with pytest.raises(ValueError, match=r'unknown_study="shared" needs study_key and like'):
        from_anndata(query, study_key="donor", unknown_study="shared")
    with pytest.raises(ValueError, match=r'must be "raise" or "shared", got \'ignore\''):
        from_anndata(query, study_key="donor", unknown_study="ignore")
