"""Platelet RNA (GSE68086): real bulk counts, in memory and from a file."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from probinterp.genomics import from_anndata

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
