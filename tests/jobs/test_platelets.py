import json
from html import unescape

import numpy as np
import pandas as pd
import pytest

from probinterp import simulate
from probinterp.jobs import run_platelets
from probinterp.jobs.fitting import read_fit
from probinterp.jobs.platelet_cohort import (
    SYNTHETIC,
    Cohort,
    gene_sets_in,
    read_cohort,
    synthetic_cohort,
)
from probinterp.jobs.platelet_models import OURS
from probinterp.jobs.platelet_tables import effective_samples

SHORT = {"n_seeds": 2, "n_shared": 3, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def cohort():
    truth = simulate.platelet_like(16, 120, 2, 1, n_studies=3, n_batches=2, confounded=0.9, seed=0)
    return Cohort(synthetic_cohort(truth), True, f"{SYNTHETIC}: a tiny set.")


@pytest.fixture(scope="module")
def gene_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    names = [f"synthetic{j}" for j in range(1, 121)]
    lines = ["\t".join([f"set{i}", "-", *names[30 * i : 30 * i + 30]]) for i in range(4)]
    (folder / "made.gmt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def done(cohort, gene_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("platelets")
    summary, tables = run_platelets(
        folder, cohort=cohort, gene_sets=gene_sets, max_epochs=5, **SHORT
    )
    return folder, summary, tables


@pytest.mark.engine
def test_every_output_says_that_the_data_are_synthetic(done):
    folder, summary, _ = done
    assert (
        json.loads((folder / "summary.json").read_text()) | {"files": summary["files"]} == summary
    )
    assert summary["synthetic"]
    assert SYNTHETIC in summary["data"]
    assert unescape((folder / "report.html").read_text()).count(SYNTHETIC) >= 4
    for name in ("factors", "contrasts", "heldout"):
        assert pd.read_csv(folder / f"{name}.csv")["data"].str.contains(SYNTHETIC).all()
    assert all((folder / name).exists() for name in summary["files"])
    assert {"effects.png", "activity.png", "stability.png", "variance.png"} < set(summary["files"])
    assert read_fit(folder).adata.uns["source"] == SYNTHETIC


@pytest.mark.engine
def test_findings_are_stable_factors_that_batches_do_not_explain(done):
    folder, summary, tables = done
    status = tables.factors.set_index("factor")["status"]
    keys = ("findings", "explained_by_batch", "stable_in_one_disease", "few_samples", "not_stable")
    by_status = [summary[key] for key in keys]
    assert sorted(sum(by_status, [])) == sorted(status.index)
    stable = tables.factors.set_index("factor").loc[summary["findings"]]
    assert (stable["stability"] >= 0.8).all()
    assert (stable["samples"] >= 5).all()
    assert (stable["block"] == "shared").all()
    page = unescape((folder / "report.html").read_text())
    for name in status.index:
        assert (f"{name} is stable" in page) == (name in summary["findings"])
    assert not set(tables.contrasts["factor"]) - set(status.index)
    tested = tables.contrasts["p_value"].notna()
    assert set(tables.contrasts.loc[~tested, "status"]) <= {"confounded with batch"}


@pytest.mark.engine
def test_heldout_differences_are_paired_within_groups(done):
    _, summary, tables = done
    heldout = tables.heldout
    assert heldout["group"].unique().tolist() == ["all", "group 1", "group 2", "group 3"]
    assert heldout.groupby("group")["samples"].first()["all"] == summary["n_heldout"]
    for _, rows in heldout.groupby("group"):
        assert rows["model"].iloc[0] == OURS
        gap = rows["nats per sample"].iloc[0] - rows["nats per sample"]
        assert np.allclose(rows["difference"], gap, rtol=0, atol=2e-2)
    assert sum(summary["variance_shares"]["group 1"].values()) == pytest.approx(1, abs=1e-6)


def test_confounding_names_the_diseases(cohort):
    design, text = cohort.design(), cohort.confounding()
    assert design.to_numpy().sum() == 48
    group, batch = design.stack().idxmin()
    assert design.loc[group, batch] < 5
    assert f"{group} has " in text
    assert f"in {batch}" in text


def test_without_the_series_a_cohort_is_simulated_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBINTERP_DATA", str(tmp_path))
    found = read_cohort(seed=1)
    assert found.synthetic
    assert found.note.startswith(SYNTHETIC)
    assert "GSE68086" in found.note
    assert found.adata.obs_names.str.startswith("synthetic").all()
    assert gene_sets_in() == {}
    with pytest.raises(FileNotFoundError, match="no file \\*.gmt"):
        gene_sets_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="Get GSE68086"):
        read_cohort(tmp_path / "absent.h5ad")


def test_bad_options_are_refused(cohort, tmp_path):
    with pytest.raises(ValueError, match="n_seeds must be at least 1, got 0"):
        run_platelets(tmp_path, cohort=cohort, n_seeds=0)
    with pytest.raises(ValueError, match="path or cohort, not both"):
        run_platelets(tmp_path, cohort=cohort, path=tmp_path)


def test_real_series_is_named_by_symbol(data_dir):
    folder = data_dir / "tep_gse68086"
    if not folder.is_dir():
        pytest.skip(f"{folder} not found; set PROBINTERP_DATA")
    found = read_cohort(folder)
    assert found.adata.shape == (184, 2741)
    assert found.adata.var_names.is_unique
    assert {"PPBP", "PF4"} <= set(found.adata.var_names)
    assert "stands in for the platelet cohort" in found.note
    assert "Breast has no samples in Batch02" in found.confounding()
    assert found.reference == "HC"


def test_effective_samples_of_normal_scores_and_of_one_far_sample():
    random = np.random.default_rng(0)
    scores = pd.Series(random.standard_normal(3000))
    assert effective_samples(scores) == pytest.approx(1000, rel=0.1)
    assert effective_samples(pd.Series([0.0, 0, 0, 5, 5.1, 4.9, 80])) == pytest.approx(
        1.71, abs=0.01
    )
    assert effective_samples(pd.Series([0.0, 0.0])) == 0
