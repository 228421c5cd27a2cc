import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from probinterp.genomics import from_anndata, split


def cells(n=200):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (n, 5)).astype("f4") + 1
    counts *= np.linspace(1, 9, n).round()[:, None].astype("f4")  # depth grows along the file
    obs = pd.DataFrame(
        {
            "type": np.repeat(["a", "b", "c"], [n // 2, n // 4, n // 4]),
            "donor": np.resize([f"d{i}" for i in range(10)], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(sp.csr_matrix(counts), obs=obs)


def test_parts_are_a_partition_in_file_order_and_the_seed_decides():
    adata = cells()
    train, heldout = split(adata, 0.25, seed=3)
    assert (train.n_obs, heldout.n_obs) == (150, 50)
    assert sorted([*train.obs_names, *heldout.obs_names]) == sorted(adata.obs_names)
    assert list(heldout.obs_names) == [n for n in adata.obs_names if n in set(heldout.obs_names)]
    assert not train.is_view
    assert np.array_equal(heldout.X.toarray(), adata[heldout.obs_names].X.toarray())
    again, other = split(adata, 0.25, seed=3)[1], split(adata, 0.25, seed=4)[1]
    assert list(again.obs_names) == list(heldout.obs_names)
    assert list(other.obs_names) != list(heldout.obs_names)


def test_strata_have_the_same_share_in_both_parts():
    train, heldout = split(cells(), 0.2, stratify="type")
    assert heldout.obs["type"].value_counts().to_dict() == {"a": 20, "b": 10, "c": 10}
    assert train.obs["type"].value_counts().to_dict() == {"a": 80, "b": 40, "c": 40}


def test_groups_stay_together():
    train, heldout = split(cells(), 0.3, groups="donor")
    assert heldout.obs["donor"].nunique() == 3
    assert not set(train.obs["donor"]) & set(heldout.obs["donor"])


def test_groups_stay_together_within_strata():
    adata = cells()
    adata.obs["type"] = np.where(adata.obs["donor"].isin(["d0", "d1", "d2", "d3"]), "ill", "well")
    train, heldout = split(adata, 0.5, stratify="type", groups="donor")
    assert not set(train.obs["donor"]) & set(heldout.obs["donor"])
    assert heldout.obs["type"].value_counts().to_dict() == {"well": 60, "ill": 40}


@pytest.mark.parametrize("labels", ["array", "tensor", "categorical"])
def test_expression_data_and_anndata_are_split_alike(labels):
    adata = cells()
    codes = pd.factorize(adata.obs["type"])[0]
    given = {
        "array": adata.obs["type"].to_numpy(),
        "tensor": torch.from_numpy(codes),
        "categorical": adata.obs["type"].astype("category"),
    }[labels]
    parts = split(from_anndata(adata), 0.2, stratify=given, seed=5)
    expected = split(adata, 0.2, stratify="type", seed=5)
    for part, whole in zip(parts, expected, strict=True):
        assert list(part.obs_names) == list(whole.obs_names)
        assert np.array_equal(part.batch().x.to_dense().numpy(), whole.X.toarray())


def test_size_factors_of_both_parts_use_the_training_median():
    adata = cells()
    train, heldout = split(from_anndata(adata), 0.3, seed=1)
    library = np.asarray(adata.X.sum(axis=1)).ravel()
    by_name = pd.Series(library, index=adata.obs_names)
    median = by_name[train.obs_names].median()
    assert median != np.median(library)
    assert train.batch().size_factor.median() == pytest.approx(1, abs=0.05)
    for part in (train, heldout):
        expected = (by_name[part.obs_names] / median).to_numpy(dtype="f4")
        assert np.array_equal(part.batch().size_factor, expected)


def test_both_ways_of_splitting_give_the_same_size_factors():
    adata = cells()
    train, heldout = split(from_anndata(adata), 0.2, seed=2)
    first, second = split(adata, 0.2, seed=2)
    read = from_anndata(first)
    assert torch.equal(read.batch().size_factor, train.batch().size_factor)
    later = from_anndata(second, like=read)
    assert torch.equal(later.batch().size_factor, heldout.batch().size_factor)


def test_heldout_values_cannot_reach_the_training_part():
    adata, changed = cells(), cells()
    positions = [changed.obs_names.get_loc(n) for n in split(adata, seed=0)[1].obs_names]
    changed.X = changed.X.toarray()
    changed.X[positions] *= 50
    before = split(from_anndata(adata), seed=0)[0].batch()
    after = split(from_anndata(changed), seed=0)[0].batch()
    assert torch.equal(before.size_factor, after.size_factor)
    assert torch.equal(before.x.to_dense(), after.x)


def test_values_without_size_factors_are_split_too():
    train, heldout = split(from_anndata(cells(), counts=False))
    assert train.batch().size_factor is None
    assert len(train) + len(heldout) == 200


def test_backed_data_are_split_without_being_read(tmp_path):
    adata = cells()
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = from_anndata(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"))
    parts, expected = split(backed, seed=6), split(from_anndata(adata), seed=6)
    for part, whole in zip(parts, expected, strict=True):
        assert part.report.storage == "backed csr"
        assert torch.equal(part.batch().x.to_dense(), whole.batch().x.to_dense())
        assert torch.equal(part.batch().size_factor, whole.batch().size_factor)
