"""Every input that cannot be used is refused in words: what, where, and what was expected."""

import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from probinterp.genomics import from_anndata, split

STORAGES = ("dense", "csr", "csc", "view", "layer", "backed", "backed dense")


def counts(dtype=np.float32):
    return np.arange(1, 25, dtype=dtype).reshape(6, 4) % 7 + 1


def annotated(x, **obs):
    names = [f"c{i}" for i in range(len(x) if isinstance(x, np.ndarray) else x.shape[0])]
    table = pd.DataFrame({"study": list("aabbcc")[: len(names)], **obs}, index=names)
    return ad.AnnData(x, obs=table, var=pd.DataFrame(index=list("ABCDEFGH")[: x.shape[1]]))


def good(**obs):
    return annotated(counts(), **obs)


def stored(x, storage, folder):
    """AnnData that holds ``x`` in one of the forms that it may come in."""
    if storage == "csr":
        return annotated(sp.csr_matrix(x))
    if storage == "csc":
        return annotated(sp.csc_matrix(x))
    if storage == "view":
        return annotated(x)[:]
    if storage == "layer":
        adata = annotated(np.ones_like(x))
        adata.layers["raw"] = sp.csr_matrix(x)
        return adata
    if storage.startswith("backed"):
        matrix = x if storage == "backed dense" else sp.csr_matrix(x)
        annotated(matrix).write_h5ad(folder / "bad.h5ad")
        return ad.read_h5ad(folder / "bad.h5ad", backed="r")
    return annotated(x)


# one entry of row 2 (cell 'c2'), column 1 (gene 'B') is replaced: value, options, message
ENTRIES = {
    "negative": (-3.0, {}, r"holds a negative count: -3\.0 at cell 'c2', gene 'B'; expected"),
    "NaN": (np.nan, {}, r"holds NaN: nan at cell 'c2', gene 'B'; impute"),
    "Inf": (np.inf, {}, r"holds an infinite value: inf at cell 'c2', gene 'B'"),
    "minus Inf": (-np.inf, {}, r"holds an infinite value: -inf at cell 'c2', gene 'B'"),
    "fraction": (
        0.5,
        {},
        r"holds a non-integer count: 0\.5 at cell 'c2', gene 'B'; .*counts=False",
    ),
    "tiny fraction": (1e-30, {}, r"holds a non-integer count: .*e-30 at cell 'c2', gene 'B'"),
    "1e30": (
        1e30,
        {},
        r"holds a count too large for float32: 1.*e\+30 at cell 'c2', gene 'B'; .*2\*\*24",
    ),
    "beyond 2**24": (
        2.0**24 + 2,
        {},
        r".* too large for float32: 16777218\.0 at cell 'c2', gene 'B'",
    ),
    "NaN value": (np.nan, {"counts": False}, r"holds NaN: nan at cell 'c2', gene 'B'"),
    "Inf value": (np.inf, {"counts": False}, r"holds an infinite value: inf at cell 'c2', gene"),
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("value", "options", "message"), ENTRIES.values(), ids=ENTRIES)
def test_a_bad_entry_is_named_in_every_storage(value, options, message, storage, tmp_path):
    x = counts()
    x[2, 1] = value
    adata = stored(x, storage, tmp_path)
    options = {**options, "layer": "raw"} if storage == "layer" else options
    source = "layer 'raw' " if storage == "layer" else "X "
    started = time.perf_counter()
    with pytest.raises(ValueError, match=source + message):
        from_anndata(adata, **options)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 0), (5, 3)])
def test_the_first_and_the_last_entry_of_a_row_are_named_right(row, column, storage, tmp_path):
    x = counts()
    x[row, column] = -1
    x[1] = [0, 0, 0, 9]  # rows of different lengths in sparse storage
    adata = stored(x, storage, tmp_path)
    with pytest.raises(ValueError, match=f"cell 'c{row}', gene '{'ABCD'[column]}'"):
        from_anndata(adata, layer="raw" if storage == "layer" else None)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [1, 4],
            slice(None),
            r"holds 2 cells with nothing but zeros: 'c1', 'c4'; .*drop_empty=True",
        ),
        (slice(None), [3], r"holds 1 genes with nothing but zeros: 'D'; .*drop_empty=True"),
        (slice(None), slice(None), r"holds nothing but zeros\."),
    ],
    ids=["cells", "genes", "everything"],
)
def test_empty_cells_and_genes_are_refused_in_every_storage(
    rows, columns, message, storage, tmp_path
):
    x = counts()
    x[rows, columns] = 0
    adata = stored(x, storage, tmp_path)
    with pytest.raises(ValueError, match=message):
        from_anndata(adata, layer="raw" if storage == "layer" else None)


def corrupt(kind, change):
    """Sparse matrix whose index arrays were changed behind scipy's back."""
    adata = annotated(kind(counts()))
    change(adata.X)
    return adata


def set_entry(array, place, value):
    return lambda x: getattr(x, array).__setitem__(place, value)


def duplicated(axis):
    adata = good()
    names = [f"n{i}" for i in range(adata.shape[axis == "var"])]
    names[2] = names[0]
    setattr(adata, f"{axis}_names", names)
    return adata


def other_dtype(dtype):
    return annotated(counts().astype(dtype))


def masked():
    adata = good()
    adata.X = np.ma.masked_array(counts(), mask=counts() > 5)
    return adata


def doubled_column():
    adata = good()
    adata.obs.insert(0, "study", "x", allow_duplicates=True)
    return adata


def raw_object(value):
    return lambda: value


def with_missing(values):
    return lambda: good(batch=values)


def huge_integer():
    x = counts(np.int64)
    x[2, 1] = 2**40
    return annotated(x)


def beyond_float32():
    x = counts(np.float64)
    x[2, 1] = -1e300
    return annotated(x)


def without_matrix():
    return ad.AnnData(obs=good().obs, var=good().var)


def unsigned_overflow():
    x = counts(np.uint64)
    x[2, 1] = 2**63
    return annotated(x)


def like(**options):
    return from_anndata(good(), **options)


def lacking_genes():
    return good()[:, ["C", "A"]].copy()


# what: make the AnnData, options, exception, message
TABLE = {
    "a path": (
        raw_object("cells.h5ad"),
        {},
        TypeError,
        r"expected an AnnData, got str; read files",
    ),
    "None": (raw_object(None), {}, TypeError, r"expected an AnnData, got NoneType"),
    "a table": (raw_object(pd.DataFrame()), {}, TypeError, r"expected an AnnData, got DataFrame"),
    "an array": (raw_object(counts()), {}, TypeError, r"expected an AnnData, got ndarray"),
    "no cells": (lambda: good()[:0].copy(), {}, ValueError, r"AnnData of shape \(0, 4\)"),
    "no genes": (lambda: good()[:, :0].copy(), {}, ValueError, r"AnnData of shape \(6, 0\)"),
    "no X": (
        without_matrix,
        {},
        ValueError,
        r"adata\.X is None; give layer=\.\.\., available: \[\]",
    ),
    "missing layer": (good, {"layer": "raw"}, KeyError, r"layer 'raw' not in adata\.layers; avail"),
    "layer a number": (good, {"layer": 3}, TypeError, r"layer must be a string or None, got int"),
    "missing study": (good, {"study_key": "bat"}, KeyError, r"'bat' not in adata\.obs; .*'study'"),
    "study a number": (good, {"study_key": 1}, TypeError, r"obs column must be a string, got int"),
    "missing size": (good, {"size_factor_key": "n"}, KeyError, r"'n' not in adata\.obs; available"),
    "doubled column": (
        doubled_column,
        {"study_key": "study"},
        ValueError,
        r"2 columns named 'study'",
    ),
    "doubled cells": (lambda: duplicated("obs"), {}, ValueError, r"obs_names are not unique: 'n0'"),
    "doubled genes": (
        lambda: duplicated("var"),
        {},
        ValueError,
        r"var_names are not unique: 'n0' .*adata\.var_names_make_unique\(\)",
    ),
    "study NaN": (
        with_missing(["a", "b", None, "a", np.nan, "b"]),
        {"study_key": "batch"},
        ValueError,
        r"obs\['batch'\] is missing \(NaN\) for 2 of 6 cells: 'c2', 'c4'",
    ),
    "categorical NaN": (
        with_missing(pd.Categorical(["a", "b", None, "a", "b", "b"])),
        {"study_key": "batch"},
        ValueError,
        r"obs\['batch'\] is missing \(NaN\) for 1 of 6 cells: 'c2'",
    ),
    "study a float": (
        with_missing([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]),
        {"study_key": "batch"},
        TypeError,
        r"obs\['batch'\] must be categorical, strings, integers or Booleans, got dtype float64",
    ),
    "studies 1 and '1'": (
        with_missing(pd.Categorical([1, "1", 1, "1", 1, 1])),
        {"study_key": "batch"},
        ValueError,
        r"categories that are equal as strings: \('1', '1'\)",
    ),
    "size zero": (
        with_missing([1, 2, 0, 4, 5, 6]),
        {"size_factor_key": "batch"},
        ValueError,
        r"obs\['batch'\] must be positive and finite, got 0\.0 for cell 'c2'",
    ),
    "size negative": (
        with_missing([1, 2, 3, -4.5, 5, 6]),
        {"size_factor_key": "batch"},
        ValueError,
        r"must be positive and finite, got -4\.5 for cell 'c3'",
    ),
    "size infinite": (
        with_missing([1, 2, 3, np.inf, 5, 6]),
        {"size_factor_key": "batch"},
        ValueError,
        r"must be positive and finite, got inf for cell 'c3'",
    ),
    "size NaN": (
        with_missing([1, 2, 3, np.nan, 5, 6]),
        {"size_factor_key": "batch"},
        ValueError,
        r"obs\['batch'\] is missing \(NaN\) for 1 of 6 cells: 'c3'",
    ),
    "size a string": (good, {"size_factor_key": "study"}, TypeError, r"must be numeric, got dtype"),
    "size a Boolean": (
        with_missing([True, False] * 3),
        {"size_factor_key": "batch"},
        TypeError,
        r"obs\['batch'\] must be numeric, got dtype bool",
    ),
    "median zero": (good, {"median_library_size": 0}, ValueError, r"positive and finite, got 0"),
    "median NaN": (
        good,
        {"median_library_size": np.nan},
        ValueError,
        r"median library size must be positive and finite, got nan",
    ),
    "median unused": (
        good,
        {"median_library_size": 1.0, "counts": False},
        ValueError,
        r"median_library_size has no use with counts=False",
    ),
    "counts a string": (
        good,
        {"counts": "yes"},
        TypeError,
        r"counts must be True or False, got 'yes'",
    ),
    "objects": (
        lambda: other_dtype(object),
        {},
        TypeError,
        r"X must hold real numbers, got dtype obj",
    ),
    "strings": (lambda: other_dtype(str), {}, TypeError, r"X must hold real numbers, got dtype <U"),
    "complex": (lambda: other_dtype(complex), {}, TypeError, r"real numbers, got dtype complex128"),
    "masked": (masked, {}, TypeError, r"X is a masked array; fill or drop the masked entries"),
    "2**40": (
        huge_integer,
        {},
        ValueError,
        r"large for float32: 1099511627776 at cell 'c2', gene 'B'",
    ),
    "2**63": (
        unsigned_overflow,
        {},
        ValueError,
        r"too large for float32: 9223372036854775808 at cell",
    ),
    "-1e300": (
        beyond_float32,
        {"counts": False},
        ValueError,
        r"a value beyond float32: -1e\+300 at cell 'c2', gene 'B'; expected absolute values up to",
    ),
    "column out of range": (
        lambda: corrupt(sp.csr_matrix, set_entry("indices", 3, 99)),
        {},
        ValueError,
        r"X is not a valid csr matrix: .*indices must be < 4",
    ),
    "column negative": (
        lambda: corrupt(sp.csr_matrix, set_entry("indices", 3, -1)),
        {},
        ValueError,
        r"X is not a valid csr matrix: .*indices must be >= 0",
    ),
    "row out of range": (
        lambda: corrupt(sp.csc_matrix, set_entry("indices", 3, 99)),
        {},
        ValueError,
        r"X is not a valid csc matrix: .*indices must be < 6",
    ),
    "pointers fall": (
        lambda: corrupt(sp.csr_matrix, set_entry("indptr", 2, 1)),
        {},
        ValueError,
        r"X is not a valid csr matrix: indptr must be .*non-decreasing",
    ),
    "pointers too long": (
        lambda: corrupt(sp.csr_matrix, set_entry("indptr", -1, 999)),
        {},
        ValueError,
        r"X is not a valid csr matrix: .*[Ll]ast value of (the )?index pointer",
    ),
    "pointers start late": (
        lambda: corrupt(sp.csr_matrix, set_entry("indptr", 0, 1)),
        {},
        ValueError,
        r"X is not a valid csr matrix: index pointer should start with 0",
    ),
    "fractional columns": (
        lambda: corrupt(
            sp.csr_matrix, lambda x: setattr(x, "indices", x.indices.astype(np.float32))
        ),
        {},
        ValueError,
        r"X is not a valid csr matrix: index dtypes .*float32",
    ),
    "data too short": (
        lambda: corrupt(sp.csr_matrix, lambda x: setattr(x, "data", x.data[:-2])),
        {},
        ValueError,
        r"X is not a valid csr matrix: .*indices.* and data should have the same size",
    ),
    "like a dict": (good, {"like": {}}, TypeError, r"like must be an ExpressionData, got dict"),
    "like lacks genes": (
        lacking_genes,
        {"like": like()},
        KeyError,
        r"2 of the 4 genes of the reference data are missing: 'B', 'D'",
    ),
    "like and median": (
        good,
        {"like": like(), "median_library_size": 3.0},
        ValueError,
        r"give median_library_size or like, not both",
    ),
    "like of values": (
        good,
        {"like": like(counts=False)},
        ValueError,
        r"counts=True, but the reference data were read with counts=False",
    ),
    "like of another size": (
        with_missing([1, 2, 3, 4, 5, 6]),
        {"like": like(), "size_factor_key": "batch"},
        ValueError,
        r"size_factor_key='batch', but the reference data were read with size_factor_key=None",
    ),
    "like with studies": (
        good,
        {"like": like(study_key="study")},
        ValueError,
        r"study_key=None, but the studies of the reference data are \('a', 'b', 'c'\)",
    ),
    "like without studies": (
        good,
        {"like": like(), "study_key": "study"},
        ValueError,
        r"study_key='study', but the studies of the reference data are None",
    ),
    "unknown study": (
        lambda: annotated(counts(), batch=list("aabbzz")),
        {"like": like(study_key="study"), "study_key": "batch"},
        KeyError,
        r"obs\['batch'\] has studies that the reference data lack: 'z'; known: 'a', 'b', 'c'",
    ),
}


@pytest.mark.parametrize(("make", "options", "error", "message"), TABLE.values(), ids=TABLE)
def test_bad_input_is_refused_in_words(make, options, error, message):
    adata = make()
    started = time.perf_counter()
    with pytest.raises(error, match=message):
        from_anndata(adata, **options)
    assert time.perf_counter() - started < 1


def test_columns_in_a_file_are_refused_with_the_way_out(tmp_path):
    annotated(sp.csc_matrix(counts())).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(TypeError, match=r"X is stored by columns \(CSC\) .*to_memory\(\)"):
        from_anndata(backed)
    assert from_anndata(backed.to_memory()).n_obs == 6


def test_index_out_of_range_in_a_file_is_refused(tmp_path):
    adata = annotated(sp.csr_matrix(counts()))
    adata.X.indices[9] = 44
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"X is not a valid csr matrix: .*indices must be < 4"):
        from_anndata(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"))


SPLITS = {
    "nothing": ({"heldout": 0.0}, ValueError, r"heldout must lie in \(0, 1\), got 0\.0"),
    "everything": ({"heldout": 1.0}, ValueError, r"heldout must lie in \(0, 1\), got 1\.0"),
    "a count": ({"heldout": 3}, ValueError, r"heldout must lie in \(0, 1\), got 3"),
    "almost everything": ({"heldout": 0.99}, ValueError, r"6 cells cannot be split with heldout"),
    "missing column": ({"stratify": "x"}, KeyError, r"'x' not in adata\.obs"),
    "lonely stratum": (
        {"stratify": list("aaabbz"), "heldout": 0.5},
        ValueError,
        r"strata with a single cell cannot be in both parts: 'z'; merge or drop them",
    ),
    "more strata than cells held out": (
        {"stratify": list("aabbcc"), "heldout": 0.2},
        ValueError,
        r"6 cells cannot be split with heldout=0\.2: 2 held-out rows cannot cover 3 strata",
    ),
    "one group": ({"groups": ["a"] * 6}, ValueError, r"a split needs at least 2 groups, got 1"),
    "labels too short": (
        {"groups": ["a", "b"]},
        ValueError,
        r"groups must have one label per cell, shape \(6,\), got \(2,\)",
    ),
    "label missing": (
        {"stratify": ["a", None, "b", "a", "b", "a"]},
        ValueError,
        r"stratify is missing \(NaN\) for 1 cells",
    ),
    "too few groups for the share": (
        {"groups": list("aabbcc"), "stratify": list("ababab"), "heldout": 0.1},
        ValueError,
        r"heldout=0\.1 asks for 10 folds of 3 groups; expected heldout between 0\.333 and 0\.5",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), SPLITS.values(), ids=SPLITS)
def test_impossible_splits_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        split(good(), **options)


def test_split_refuses_other_types_and_backed_files(tmp_path):
    with pytest.raises(TypeError, match=r"expected an AnnData or ExpressionData, got ndarray"):
        split(counts())
    with pytest.raises(TypeError, match=r"stratify must be one label per cell .*got a name"):
        split(from_anndata(good()), stratify="study")
    backed = stored(counts(), "backed", tmp_path)
    with pytest.raises(TypeError, match=r"split\(from_anndata\(adata\)\)"):
        split(backed)
