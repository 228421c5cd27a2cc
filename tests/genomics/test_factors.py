import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from probinterp.genomics import enrich_factors, from_anndata, split, top_genes, write_factors
from probinterp.inference import Factors

LOADINGS = torch.tensor(
    [[3.0, 0.0, 0.0], [-5.0, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, -0.5, 0.0], [0.0, 2.0, 0.0]]
)
EFFECTS = LOADINGS * torch.tensor([[9.0], [1.0], [1.0], [1.0], [0.1]])  # not in proportion


def cells(n=8):
    counts = np.arange(n * 5, dtype=np.float32).reshape(n, 5) % 3 + 1
    names = [f"cell{i}" for i in range(n)]
    return ad.AnnData(sp.csr_matrix(counts), obs=pd.DataFrame(index=names), var=genes())


def genes():
    return pd.DataFrame(index=list("ABCDE"))


def factors(n=8, g=5, **changes):
    scores = torch.arange(n * 3.0).reshape(n, 3)
    inclusion = (LOADINGS != 0).float() * 0.9
    made = Factors(
        scores=scores,
        scales=scores / 10 + 0.1,
        loadings=LOADINGS[:g],
        inclusion=inclusion[:g],
        effects=EFFECTS[:g],
        columns=torch.tensor([4, 0, 7]),
    )
    return made._replace(**changes)


def test_factors_survive_the_file(tmp_path):
    adata = cells()
    params = {
        "lr": 0.01,
        "seed": 3,
        "nested": {"on": True, "name": "x"},
        "sizes": [1, 2],
        "no": None,
    }
    write_factors(adata, factors(), key="m", params=params)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    for one in (adata, read):
        assert np.array_equal(one.obsm["X_m"], factors().scores)
        assert np.array_equal(one.obsm["m_scale"], factors().scales)
        assert np.array_equal(one.varm["m_loadings"], LOADINGS)
        assert np.array_equal(one.varm["m_inclusion"], factors().inclusion)
        assert np.array_equal(one.varm["m_effects"], EFFECTS)
        summary = one.uns["m"]
        assert list(summary["factor_names"]) == factors().names
        assert summary["columns"].tolist() == [4, 0, 7]
        assert (summary["n_factors"], summary["n_obs"], summary["n_vars"]) == (3, 8, 5)
        assert summary["params"]["lr"] == 0.01
        assert summary["params"]["seed"] == 3
        assert bool(summary["params"]["nested"]["on"])
        assert summary["params"]["sizes"] == "[1, 2]"
        assert summary["params"]["no"] == "null"
    pd.testing.assert_frame_equal(top_genes(adata, key="m"), top_genes(read, key="m"))


def test_a_part_of_the_cells_and_genes_goes_where_its_names_are():
    adata = cells()
    adata.X = adata.X.toarray()
    adata.X[:, 2] = 0
    shuffled = adata[[6, 1, 3], ::-1].copy()
    data = from_anndata(shuffled, drop_empty=True)
    part = factors(n=3, g=4)
    write_factors(adata, part, data=data)
    scores, loadings = adata.obsm["X_sparse_vae"], adata.varm["sparse_vae_loadings"]
    assert np.array_equal(scores[[6, 1, 3]], part.scores)
    assert np.isnan(scores[[0, 2, 4, 5, 7]]).all()
    assert np.array_equal(loadings[[4, 3, 1, 0]], part.loadings)  # E D B A, without C
    assert np.isnan(loadings[2]).all()
    assert adata.uns["sparse_vae"]["n_obs"] == 3
    listed = top_genes(adata)
    assert "C" not in set(listed["gene"])
    by_name = top_genes(part, var_names=data.var_names)
    listed, by_name = (  # tied genes stand in another order in the file
        table.drop(columns="rank").sort_values(["factor", "gene"], ignore_index=True)
        for table in (listed, by_name)
    )
    pd.testing.assert_frame_equal(listed, by_name)


def test_train_and_heldout_can_be_written_one_after_the_other():
    adata = cells()
    train, _ = split(from_anndata(adata), 0.25)
    write_factors(adata, factors(n=6), data=train)
    assert np.isnan(adata.obsm["X_sparse_vae"]).all(axis=1).sum() == 2


def test_models_without_loadings_and_without_active_factors_are_written(tmp_path):
    adata = cells()
    write_factors(adata, factors(loadings=None, inclusion=None), key="vae")
    assert set(adata.varm) == {"vae_effects"}
    columns = torch.zeros(0, dtype=torch.int64)
    none = Factors(*(torch.zeros(n, 0) for n in (8, 8, 5, 5, 5)), columns)
    write_factors(adata, none, key="collapsed")
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert read.obsm["X_collapsed"].shape == (8, 0)
    assert top_genes(read, key="collapsed").empty


def test_overwriting_leaves_nothing_of_the_old_result():
    adata = cells()
    write_factors(adata, factors(), key="m", params={"lr": 1.0})
    old = adata.copy()
    with pytest.raises(
        ValueError,
        match=r"holds obsm\['X_m'\], .*varm\['m_effects'\], uns\['m'\]; give overwrite=True",
    ):
        write_factors(adata, factors(), key="m")
    assert np.array_equal(adata.varm["m_loadings"], old.varm["m_loadings"])
    write_factors(adata, factors(loadings=None, inclusion=None), key="m", overwrite=True)
    assert "m_loadings" not in adata.varm
    assert adata.uns["m"]["params"] == {}


def unknown_cells():
    other = cells()
    other.obs_names = [f"other{i}" for i in range(8)]
    return from_anndata(other)


BAD = {
    "a view": (
        lambda: cells()[:],
        factors(),
        {},
        ValueError,
        r"adata is a view; write to adata\.copy",
    ),
    "other type": (lambda: None, factors(), {}, TypeError, r"expected an AnnData, got NoneType"),
    "slash": (cells, factors(), {"key": "a/b"}, TypeError, r"key must be .*, got 'a/b'"),
    "no key": (cells, factors(), {"key": ""}, TypeError, r"key must be a non-empty string"),
    "cells": (
        cells,
        factors(n=7),
        {},
        ValueError,
        r"scores must have shape \(8, 3\) to match adata, got \(7, 3\); give data=",
    ),
    "genes": (
        cells,
        factors(g=4),
        {},
        ValueError,
        r"loadings must have shape \(5, 3\) .* \(4, 3\)",
    ),
    "scales": (
        cells,
        factors(scales=torch.ones(8, 2)),
        {},
        ValueError,
        r"scales must have shape \(8, 3\) to match adata, got \(8, 2\)",
    ),
    "inclusion": (
        cells,
        factors(inclusion=torch.ones(5, 2)),
        {},
        ValueError,
        r"inclusion must have shape \(5, 3\)",
    ),
    "NaN": (
        cells,
        factors(scores=torch.full((8, 3), torch.nan)),
        {},
        ValueError,
        r"scores must be finite, got 24 that are not",
    ),
    "names": (
        cells,
        factors(),
        {"data": unknown_cells()},
        KeyError,
        r"8 cells of data are not in adata: 'other0', .*\(8 in all\)",
    ),
    "setting": (
        cells,
        factors(),
        {"params": {"model": object()}},
        TypeError,
        r"setting 'model' must be a number, string, list, mapping or None, got object",
    ),
    "name of a setting": (
        cells,
        factors(),
        {"params": {"a/b": 1}},
        TypeError,
        r"names of settings must be strings without '/', got 'a/b'",
    ),
}


@pytest.mark.parametrize(("make", "found", "options", "error", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_written_is_refused_and_nothing_is_written(
    make, found, options, error, message
):
    adata = make()
    with pytest.raises(error, match=message):
        write_factors(adata, found, **options)
    if adata is not None:
        assert not adata.obsm
        assert not adata.varm
        assert not adata.uns


def test_top_genes_are_ordered_by_absolute_loading_without_zeros():
    table = top_genes(factors(), 2, var_names=list("ABCDE"))
    assert list(table.columns) == ["factor", "rank", "gene", "loading", "effect", "inclusion"]
    expected = [
        ("factor_1", 1, "B", -5.0),
        ("factor_1", 2, "A", 3.0),
        ("factor_2", 1, "E", 2.0),
        ("factor_2", 2, "B", 0.5),  # tied with D, which stands later
    ]
    rows = table[["factor", "rank", "gene", "loading"]].itertuples(index=False, name=None)
    assert list(rows) == expected
    assert table["inclusion"].to_numpy() == pytest.approx(0.9)
    assert len(top_genes(factors(), 99, var_names=list("ABCDE"))) == 6
    effects = top_genes(factors(), 2, var_names=list("ABCDE"), by_effect=True)
    assert list(effects["gene"]) == ["A", "B", "B", "D"]
    assert effects["effect"].to_list() == [27.0, -5.0, 0.5, -0.5]
    assert effects["loading"].to_list() == [3.0, -5.0, 0.5, -0.5]
    unknown = top_genes(factors(inclusion=None), var_names=list("ABCDE"))
    assert unknown["inclusion"].isna().all()


def test_top_genes_refuse_what_has_no_names_or_loadings():
    with pytest.raises(ValueError, match=r"expected var_names with 5 genes, got none"):
        top_genes(factors())
    with pytest.raises(ValueError, match=r"expected var_names with 5 genes, got 2"):
        top_genes(factors(), var_names=["A", "B"])
    with pytest.raises(ValueError, match=r"n must be at least 1, got 0"):
        top_genes(factors(), 0, var_names=list("ABCDE"))
    without = top_genes(factors(loadings=None), var_names=list("ABCDE"), by_effect=True)
    assert without["loading"].isna().all()
    with pytest.raises(ValueError, match=r"these factors have no loadings; .*by_effect=True"):
        top_genes(factors(loadings=None), var_names=list("ABCDE"))
    with pytest.raises(
        KeyError, match=r"no adata\.varm\['sparse_vae_effects'\]; call write_factors"
    ):
        top_genes(cells())
    with pytest.raises(ValueError, match=r"var_names are those of the AnnData"):
        top_genes(cells(), var_names=list("ABCDE"))


STUDIES = ("HC", "lung cancer")
BLOCK = torch.tensor([-1, 0, 1])


def test_factors_in_blocks_are_named_by_study(tmp_path):
    adata = cells()
    adata.obs["disease"] = np.resize(STUDIES, 8)
    data = from_anndata(adata, study_key="disease")
    found = factors(block=BLOCK)
    expected = ["shared_1", "HC_1", "lung cancer_1"]
    write_factors(adata, found, data=data)
    adata.write_h5ad(tmp_path / "a.h5ad")
    written = ad.read_h5ad(tmp_path / "a.h5ad")
    summary = written.uns["sparse_vae"]
    assert list(summary["factor_names"]) == expected
    assert list(summary["block"]) == ["shared", "HC", "lung cancer"]
    assert list(summary["studies"]) == list(STUDIES)
    table = top_genes(found, 2, var_names=list("ABCDE"), study_names=STUDIES)
    assert list(table["factor"].unique()) == expected[:2]  # the last has no loading
    pd.testing.assert_frame_equal(top_genes(written, 2), table)
    tested = enrich_factors(table, {"set": ["A", "B", "C"]}, list("ABCDE"), min_size=1)
    assert list(tested["factor"]) == expected[:2]


def test_blocks_without_names_are_numbered_and_one_study_has_none():
    adata = cells()
    write_factors(adata, factors(block=BLOCK))
    assert list(adata.uns["sparse_vae"]["block"]) == ["shared", "study0", "study1"]
    assert list(adata.uns["sparse_vae"]["studies"]) == ["study0", "study1"]
    write_factors(adata, factors(), overwrite=True)
    assert not {"block", "studies"} & adata.uns["sparse_vae"].keys()


def test_names_of_studies_must_fit_the_blocks():
    found = factors(block=torch.tensor([-1, -1, 1]))
    assert found.names == ["shared_1", "shared_2", "study1_1"]
    with pytest.raises(ValueError, match=r"expected names of 2 studies or more, got \['a'\]"):
        found.named(["a"])
    with pytest.raises(ValueError, match="no study can be called 'shared'"):
        write_factors(cells(), found, study_names=["a", "shared"])
    with pytest.raises(ValueError, match="study_names are those written"):
        top_genes(cells(), study_names=["a", "b"])
