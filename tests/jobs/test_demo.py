import json
import time
from html import unescape

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from probinterp.genomics import datasets, marker_groups
from probinterp.jobs import fit_cells, run_demo
from probinterp.jobs.fitting import read_fit

GROUPS = "bulk_labels"


def genes_of(row):
    return set(f"{row['rise']}, {row['fall']}".split(", "))


@pytest.mark.engine
def test_demo_writes_what_it_returns(tmp_path):
    summary, table, comparison = run_demo(
        tmp_path, max_epochs=3, n_draws=20, device="cpu", progress=False
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["factors"] == table.to_dict("records")
    assert (summary["n_train"], summary["n_heldout"]) == (560, 140)
    assert comparison["model"].tolist() == ["sparse VAE", "factor analysis"]
    gap = comparison["nats per cell"].iloc[0] - comparison["nats per cell"].iloc[1]
    assert comparison["difference"].iloc[1] == pytest.approx(gap, abs=1e-3)
    assert anndata.read_h5ad(tmp_path / "adata.h5ad").n_obs == 700
    assert len(read_fit(tmp_path).factors.scores) == 700
    page = unescape((tmp_path / "report.html").read_text())
    assert f"{len(table)} factors found" in page
    assert "by factor analysis:" in page


@pytest.mark.slow
@pytest.mark.engine
def test_demo_finds_b_cells_and_cytotoxic_cells(tmp_path):
    start = time.perf_counter()
    _, table, comparison = run_demo(tmp_path, device="cpu", progress=False)
    seconds = time.perf_counter() - start
    gap, error = comparison[["difference", "standard error"]].iloc[1]
    print(table.to_string(), f"\n{gap:+.2f} nats ({error:.2f}), {seconds:.0f} s")
    found = read_fit(tmp_path)
    labels = found.adata.obs[GROUPS].to_numpy()
    auc = marker_groups(found.factors.scores, labels).pivot(
        index="factor", columns="group", values="separation"
    )
    rows = {row["factor"]: row for row in table.to_dict("records")}
    b_cells = [
        f for f in auc.index[auc["CD19+ B"] >= 0.9] if genes_of(rows[f]) & {"CD79A", "MS4A1"}
    ]
    cytotoxic = [f for f in rows if genes_of(rows[f]) & {"NKG7", "GZMB", "GNLY"}]
    assert b_cells
    assert any(auc.loc[f, ["CD56+ NK", "CD8+ Cytotoxic T"]].max() >= 0.8 for f in cytotoxic)
    assert gap > 0
    assert seconds < 240


@pytest.mark.slow
@pytest.mark.engine
def test_shuffled_genes_give_no_factor_that_marks_a_group():
    adata = datasets.pbmc68k()
    generator = np.random.default_rng(0)
    counts = adata.X.toarray()
    adata.X = sp.csr_matrix(generator.permuted(counts, axis=0))
    fitted = fit_cells(
        adata, size_factor_key="n_counts", stratify=GROUPS, device="cpu", progress=False
    )
    if len(fitted.factors.columns) == 0:
        return
    table = marker_groups(fitted.factors.scores, adata.obs[GROUPS].to_numpy())
    large = table[table["n_cells"] >= 20]
    worst = large.loc[large["separation"].idxmax()]
    assert worst["separation"] < 0.8, worst.to_dict()
