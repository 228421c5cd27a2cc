import json

import anndata
import arviz
import numpy as np
import pandas as pd
import pytest

from probinterp.jobs import check_file, compare_files
from probinterp.jobs.sources import open_source
from probinterp.reporting.arviz_version import tree_of_arrays


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Replicates N(0, 1) of 30 units with 2 variables, 2 chains of 100 draws."""
    pytest.importorskip("netCDF4" if int(arviz.__version__[0]) >= 1 else "h5netcdf")
    path = tmp_path_factory.mktemp("tree") / "normal.nc"
    rng = np.random.default_rng(0)
    groups = {
        "posterior_predictive": {"x": rng.normal(size=(2, 100, 30, 2))},
        "observed_data": {"x": rng.normal(size=(30, 2))},
    }
    tree_of_arrays(groups).to_netcdf(str(path))
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    x = np.random.default_rng(1).normal(size=(30, 2))
    np.save(folder / "x.npy", x)
    frame = pd.DataFrame(x, columns=["height", "weight"])
    frame["site"] = ["A", "B"] * 15
    frame.to_csv(folder / "x.csv", index=False)
    frame.to_csv(folder / "x.tsv", index=False, sep="\t")
    adata = anndata.AnnData(x, obs=frame[["site"]].set_axis([f"u{i}" for i in range(30)]))
    adata.var_names = ["height", "weight"]
    adata.write_h5ad(folder / "x.h5ad")
    return folder, x


@pytest.mark.parametrize("suffix", ["npy", "csv", "tsv", "h5ad"])
def test_held_out_tables_of_every_kind_are_read_alike(tree, tables, suffix):
    folder, x = tables
    source = open_source(tree, folder / f"x.{suffix}")
    np.testing.assert_allclose(source.x.numpy(), x)
    named = suffix != "npy"
    assert list(source.var_names) == (["height", "weight"] if named else ["0", "1"])
    assert source.columns == ({"site": ["A", "B"] * 15} if named else {})
    assert (source.name, source.n_obs, source.scores) == ("normal", 30, False)


def test_stored_replicates_are_checked_by_statistics(tree, tables, tmp_path):
    folder, x = tables
    checked, summary = check_file(tree, folder / "x.csv", tmp_path)
    assert list(checked.results) == [
        "mean",
        "maximum",
        "upper quartile",
        "skewness",
        "variance of each variable",
    ]
    assert summary["mean"]["heldout"] == pytest.approx(x.mean())
    assert summary["mean"]["n_draws"] == 200
    assert all(verdict.passed for verdict in checked.verdicts()[:4])
    assert list(pd.read_csv(tmp_path / "genes.csv")["gene"]) == ["height", "weight"]
    page = (tmp_path / "report.html").read_text()
    assert "Checks of normal" in page
    assert "height" in page
    assert json.loads((tmp_path / "check.json").read_text()) == summary


def test_misfit_of_one_site_is_found(tree, tables, tmp_path):
    folder, _ = tables
    spoiled = pd.read_csv(folder / "x.csv")
    spoiled.loc[spoiled["site"] == "B", "weight"] += 4
    spoiled.to_csv(tmp_path / "spoiled.csv", index=False)
    checked, _ = check_file(
        tree, tmp_path / "spoiled.csv", tmp_path, checks=["per_group(mean, 'site')"]
    )
    ranking = checked.ranking("per_group(mean, 'site')")
    assert ranking["group"].tolist() == ["B", "A"]
    assert ranking["misfit"].tolist() == [True, False]
    assert "misfit in 1 of 2 groups" in str(checked.verdicts()[0])


def test_stored_replicates_of_two_models_are_compared_by_crps(tree, tables, tmp_path):
    folder, _ = tables
    groups = {"posterior_predictive": {"x": np.random.default_rng(2).normal(2, 3, (1, 200, 30, 2))}}
    tree_of_arrays(groups).to_netcdf(str(tmp_path / "wide.nc"))
    models = [tmp_path / "wide.nc", tree]
    found, summary = compare_files(models, folder / "x.csv", tmp_path / "out")
    assert [row.name for row in found.scores.rows] == ["normal", "wide"]
    assert summary["score"] == "CRPS"
    assert found.scores.rows[1].z > 5
    table = found.check_table()
    assert list(table.columns) == ["check", "normal", "wide"]
    assert table["wide"].iloc[0].endswith("*")
    assert not table["normal"].iloc[0].endswith("*")
    with pytest.raises(ValueError, match="stored replicates have no density; use the score crps"):
        compare_files(models, folder / "x.csv", tmp_path / "out", score="log")
    with pytest.raises(ValueError, match="pass the held-out data"):
        compare_files([models[0], models[1]], None, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "1", "held-out data must be a file of type .csv, .tsv, .npy, .h5ad, got x.txt"),
        ("words.csv", "a,b\nu,v\n", "words.csv holds no column of numbers"),
        ("short.csv", "a,b\n1,2\n", "shape"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tree, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_source(tree, tmp_path / name)


def test_missing_files_and_single_numbers_are_named(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv not found"):
        open_source(tree, tmp_path / "none.csv")
    np.save(tmp_path / "one.npy", np.array(3.0))
    with pytest.raises(ValueError, match="one.npy holds a single number"):
        open_source(tree, tmp_path / "one.npy")
