"""Platelet RNA (GSE68086): real bulk counts, in memory and from a file."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from probinterp.genomics import datasets, enrich_factors, from_anndata, read_gmt, variance_shares

PLATELET_STUDIES = {"HC": 44, "Lung": 32, "GBM": 31, "CRC": 30, "Pancreas": 28, "Breast": 19}


@pytest.fixture(scope="module")
def platelets_path(data_dir):
    path = data_dir / "tep_gse68086" / "gse68086_counts.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} not found; set PROBINTERP_DATA")
    return path


def working_subset(adata):
    """Batches 02-04 without Hepatobiliary; genes with 5 counts or more in 90 % of them."""
    in_batch = adata.obs["batch"].isin(["Batch02", "Batch03", "Batch04"])
    adata = adata[in_batch & (adata.obs["cancer_type"] != "Hepatobiliary")].copy()
    return adata[:, np.asarray((adata.X >= 5).mean(0)).ravel() >= 0.9].copy()


def test_platelets_working_subset(platelets_path):
    whole = ad.read_h5ad(platelets_path)
    assert whole.shape == (229, 57736)
    subset = working_subset(whole)
    data = from_anndata(subset, study_key="cancer_type")
    batch = data.batch()
    assert batch.x.shape == (184, 2741)
    assert np.array_equal(batch.x.to_dense().numpy(), subset.X.toarray())
    names = [data.study_names[code] for code in batch.study]
    assert names == subset.obs["cancer_type"].tolist()
    assert pd.Series(names).value_counts().to_dict() == PLATELET_STUDIES
    size = np.asarray(subset.X.sum(1)).ravel()
    assert batch.size_factor.numpy() == pytest.approx(size / np.median(size), rel=1e-6)


def test_platelets_backed_and_in_memory_agree(platelets_path, tmp_path):
    subset = working_subset(ad.read_h5ad(platelets_path))
    subset.write_h5ad(tmp_path / "subset.h5ad")
    stored = ad.read_h5ad(tmp_path / "subset.h5ad", backed="r")
    backed = from_anndata(stored, study_key="cancer_type")
    memory = from_anndata(subset, study_key="cancer_type")
    index = torch.randint(184, (64,), generator=torch.Generator().manual_seed(0))
    for chosen in (None, index, index[:1]):
        first, second = backed.batch(chosen), memory.batch(chosen)
        assert torch.equal(first.x.to_dense(), second.x.to_dense())
        assert torch.equal(first.size_factor, second.size_factor)
        assert torch.equal(first.study, second.study)
    stored.file.close()


def test_loader_keeps_the_working_subset(platelets_path):
    adata = datasets.platelets(platelets_path)
    by_hand = working_subset(ad.read_h5ad(platelets_path))
    assert adata.shape == (184, 2741)
    assert adata.obs_names.equals(by_hand.obs_names)
    assert adata.var_names.equals(by_hand.var_names)
    assert np.array_equal(adata.X.toarray(), by_hand.X.toarray())
    assert adata.obs["disease"].value_counts().to_dict() == PLATELET_STUDIES
    record = adata.uns["platelets"]
    assert (record["n_samples_read"], record["n_genes_read"]) == (229, 57736)
    assert adata.obs["total_counts"].median() == pytest.approx(1.98e6, rel=2e-3)
    factor = from_anndata(adata, study_key="disease", batch_key="batch").batch().size_factor
    assert factor.numpy() == pytest.approx(adata.obs["size_factor"].to_numpy(), rel=1e-6)


def test_library_size_and_batch_explain_principal_components(platelets_path):
    adata = datasets.platelets(platelets_path)
    logs = np.log1p(adata.X.toarray() / adata.obs["size_factor"].to_numpy()[:, None])
    left, size, _ = np.linalg.svd(logs - logs.mean(axis=0), full_matrices=False)
    obs = adata.obs
    scores = left[:, :5] * size[:5]
    table = variance_shares(scores, obs["disease"], obs["batch"], obs["library_size"])
    assert (table["batch_alone"] > 0.1).any()
    assert (table["group_after_p"] <= 0.05).any()


def test_hallmark_sets_meet_platelet_genes(platelets_path, data_dir):
    adata = datasets.platelets(platelets_path)
    sets = read_gmt(data_dir / "genesets" / "h.all.v7.0.symbols.gmt")
    top = pd.DataFrame({"factor": "f", "gene": adata.var_names[:100]})
    symbols = adata.var["symbol"]
    table = enrich_factors(top, sets, list(adata.var_names), min_size=10, symbols=symbols)
    assert len(table) == 41
    dropped = table.attrs["dropped"]
    assert len(dropped["without_symbol"]) == (symbols == "").sum()
    again = symbols[symbols != ""]
    assert len(dropped["ambiguous"]) == again.duplicated(keep=False).sum()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "damaged.h5ad"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(ValueError, match=r"damaged\.h5ad is not a readable \.h5ad file"):
        datasets.platelets(path)
