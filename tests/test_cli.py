"""The command line in one process: exit codes, one line of text a failure, parseable JSON."""

import html
import json
import shutil
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from probinterp import cli, simulate
from probinterp.inference import load, log_predictive_density
from probinterp.inference.finite import NonFiniteError
from probinterp.jobs.fitting import read_fit

SHORT = ["--factors", "3", "--hidden", "8", "--epochs", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, good and bad, and a finished fit in ``fit``."""
    folder = tmp_path_factory.mktemp("cli")
    truth = simulate.sparse_counts(80, 20, 3, seed=0)
    obs = pd.DataFrame(
        {"group": pd.Categorical(np.where(truth.z[:, 0] > 0, "high", "low"))},
        index=[f"cell{i}" for i in range(80)],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(20)])
    cells = anndata.AnnData(sp.csr_matrix(truth.x.numpy()), obs=obs, var=var)
    cells.write_h5ad(folder / "good.h5ad")
    cells[:, 5:].copy().write_h5ad(folder / "fewer_genes.h5ad")
    for name, value in {"negative": -1, "half": 0.5, "nan": np.nan}.items():
        x = truth.x.numpy().copy()
        x[3, 4] = value
        anndata.AnnData(x, obs=obs, var=var).write_h5ad(folder / f"{name}.h5ad")
    several = simulate.multistudy(2, 40, 1, 1, likelihood="negative_binomial", seed=0)
    obs = obs.assign(
        disease=np.array(["HC", "Lung"])[several.study.numpy()], batch=list("ab") * 40, one="all"
    )
    several = anndata.AnnData(several.x.numpy(), obs=obs)
    several.var_names = [f"gene{j}" for j in range(several.n_vars)]
    several.write_h5ad(folder / "studies.h5ad")
    (folder / "text.h5ad").write_text("not an HDF5 file")
    (folder / "cut.h5ad").write_bytes((folder / "good.h5ad").read_bytes()[:20_000])
    assert run_in(folder, "fit", "good.h5ad", "--out", "fit", *SHORT) == 0
    for name, content in {"params.safetensors": b"?", "config.json": b"{}"}.items():
        damaged = shutil.copytree(folder / "fit", folder / f"damaged_{name.split('.')[0]}")
        (damaged / "model" / name).write_bytes(content)
    shutil.copytree(folder / "fit", folder / "no_genes")
    (folder / "no_genes" / "model" / "genes.json").unlink()
    return folder


def run_in(directory, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "argv", ["probinterp", *arguments])
        with pytest.raises(SystemExit) as finished:
            cli.main()
    return finished.value.code


BAD_INPUTS = [
    ("fit missing.h5ad", "missing.h5ad not found."),
    ("fit .", ". is a directory; expected an .h5ad file."),
    ("fit text.h5ad", "text.h5ad is not a readable .h5ad file"),
    ("fit cut.h5ad", "cut.h5ad is not a readable .h5ad file"),
    ("fit good.h5ad --layer raw", "layer 'raw' not in adata.layers; available: []."),
    ("fit negative.h5ad", "negative count: -1.0 at cell 'cell3', gene 'gene4'"),
    ("fit half.h5ad", "non-integer count: 0.5 at cell 'cell3', gene 'gene4'"),
    ("fit half.h5ad", "give the layer with raw counts (--layer), or --values for other values."),
    ("fit nan.h5ad", "X holds NaN: nan at cell 'cell3', gene 'gene4'"),
    ("fit good.h5ad --device warp", "device must be auto, cpu, cuda or cuda:0, got 'warp'."),
    ("fit good.h5ad --device meta", "device 'meta' holds no numbers"),
    ("fit good.h5ad --factors 0", "n_factors must be a positive integer, got 0."),
    ("fit good.h5ad --factors x", "Invalid value for '--factors'"),
    ("fit good.h5ad --hidden 0", "n_hidden must be a positive integer, got 0."),
    ("fit good.h5ad --epochs 0", "max_epochs must be a positive integer, got 0."),
    ("fit good.h5ad --batch-size 0", "batch_size must be a positive integer, got 0."),
    ("fit good.h5ad --learning-rate -1", "Invalid learning rate: -1.0"),
    ("fit good.h5ad --restarts 0", "restarts must be at least 1, got 0."),
    ("fit good.h5ad --heldout 1.5", "heldout must lie in (0, 1), got 1.5."),
    ("fit good.h5ad --stratify donor", "'donor' not in adata.obs; available: ['group']."),
    ("fit good.h5ad --groups donor", "'donor' not in adata.obs; available: ['group']."),
    ("fit good.h5ad --study-key donor", "'donor' not in adata.obs; available: ['group']."),
    ("fit good.h5ad --shared 2", "are for several studies: give --study-key too."),
    ("fit good.h5ad --batch-key group", "are for several studies: give --study-key too."),
    ("fit studies.h5ad --study-key one", "obs['one'] names one study only, 'all': shared and"),
    ("fit studies.h5ad --study-key disease --specific -1", "a whole number of columns, got -1."),
    ("fit good.h5ad --size-factor-key group", "obs['group'] must be numeric"),
    ("fit good.h5ad --spike -1", "spike must be positive, got -1.0."),
    ("fit good.h5ad --spike 1 --slab 2", "spike must be larger than slab = 2.0, got 1.0."),
    ("fit good.h5ad --seed -1", "Invalid value for '--seed'"),
    ("fit good.h5ad --out text.h5ad", "cannot write to text.h5ad: a file is in the way."),
    ("fit good.h5ad --bogus", "No such option: --bogus"),
    ("fit", "(see probinterp fit --help)"),
    ("paint", "No such command 'paint'"),
    ("check nowhere good.h5ad", "nowhere/config.json not found: nowhere is not a saved model."),
    ("check fit good.h5ad", "fit/config.json not found: fit is not a saved model."),
    ("check fit/model good.h5ad", "good.h5ad has no obs column 'probinterp_split'"),
    ("check fit/model fewer_genes.h5ad --all-cells", "5 of the 20 genes of the reference data"),
    ("check fit/model negative.h5ad --all-cells", "negative count: -1.0"),
    ("check fit/model text.h5ad", "text.h5ad is not a readable .h5ad file"),
    ("check fit/model fit/adata.h5ad --draws 1", "Invalid value for '--draws'"),
    ("check damaged_params/model fit/adata.h5ad", "differs from the checksum in config.json"),
    ("check damaged_config/model fit/adata.h5ad", "config.json is damaged: KeyError('format')"),
    ("check no_genes/model fit/adata.h5ad", "the model was saved without its genes."),
    ("check fit/model", "needs a file of held-out cells, .h5ad."),
    ("check nowhere.nc good.h5ad", "nowhere.nc not found."),
    ("check text.h5ad good.h5ad", "config.json not found"),
    ("check fit/model fit/adata.h5ad --discrepancy men", "no discrepancy 'men'; available: auto"),
    ("check fit/model fit/adata.h5ad --discrepancy quantile", "write quantile(q)"),
    ("check fit/model fit/adata.h5ad --discrepancy mean(", "cannot read the discrepancy 'mean('"),
    ("compare fit/model", "a comparison needs at least two models, got 1."),
    ("compare fit/model fit/model --data fit/adata.h5ad --score brier", "must be one of log, crps"),
    ("compare fit/model nowhere --data fit/adata.h5ad", "nowhere/config.json not found"),
    ("report nowhere", "nowhere/model not found: nowhere is not a finished fit."),
    ("report fit --group-key donor", "'donor' not in adata.obs; available: ['group',"),
    ("report damaged_params", "differs from the checksum in config.json"),
    ("info nowhere", "nowhere/config.json not found: nowhere is not a saved model."),
    ("info damaged_config/model", "config.json is damaged"),
    ("demo --draws 0", "Invalid value for '--draws'"),
    ("demo --max-epochs 0", "Invalid value for '--max-epochs'"),
    ("demo --path good.h5ad", "--path and --gene-sets are for `probinterp demo platelets`."),
    ("demo kidneys", "'kidneys' is not one of"),
    ("demo platelets --path missing.h5ad", "missing.h5ad not found. Get GSE68086"),
    ("demo platelets --out text.h5ad", "cannot write to text.h5ad: a file is in the way."),
    ("demo vision --path good.h5ad", "--path and --gene-sets are for"),
    ("demo vision --out text.h5ad", "cannot write to text.h5ad: a file is in the way."),
    ("clt record tiny-clip nowhere", "nowhere is neither a folder of pictures nor 'digits'."),
    ("clt record tiny-clip digits --dtype int4", "dtype must be one of float32,"),
    ("clt fit nowhere", "nowhere is no recording of `probinterp clt record`."),
    ("clt evaluate fit/model nowhere", "Missing option '--margin'"),
    ("clt evaluate fit/model nowhere --margin 2", "margin must be a share between 0 and 1"),
    ("clt evaluate fit/model nowhere --margin 0.01", "not a CrossLayerTranscoder."),
    ("demo --out text.h5ad --json", "cannot write to text.h5ad: a file is in the way."),
]


@pytest.mark.parametrize(("line", "text"), BAD_INPUTS, ids=[line for line, _ in BAD_INPUTS])
def test_bad_input_ends_with_2_and_one_line(folder, capsys, line, text):
    capsys.readouterr()
    assert run_in(folder, *line.split()) == 2
    output, errors = capsys.readouterr()
    complaint = errors.split("\r")[-1].strip()
    assert output == ""
    assert complaint.startswith("probinterp: ")
    assert text in complaint
    assert "\n" not in complaint


def test_failure_ends_with_1_and_names_the_site(folder, capsys):
    line = "fit good.h5ad --epochs 3 --learning-rate 1e30 --json --out failed"
    assert run_in(folder, *line.split()) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"probinterp: {NonFiniteError.__name__}: ")
    assert "last good weights" in errors


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 1, "interrupted"),
        (OSError(28, "No space left on device"), 1, "OSError: [Errno 28] No space left on device"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines"),
        (KeyError("no such column"), 2, "no such column"),
        (PermissionError(13, "Permission denied"), 2, "[Errno 13] Permission denied"),
    ],
)
def test_every_error_becomes_one_line(folder, capsys, monkeypatch, error, code, text):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("probinterp.jobs.fit_file", fail)
    assert run_in(folder, "fit", "good.h5ad") == code
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.strip().splitlines()[-1] == f"probinterp: {text}"
    assert "Traceback" not in errors


def test_fit_check_report_round_trip_as_json(folder, capsys):
    capsys.readouterr()
    fit = ["fit", "good.h5ad", "--out", "trip", "--stratify", "group", "--json", *SHORT]
    assert run_in(folder, *fit) == 0
    fitted = json.loads(capsys.readouterr().out)
    assert fitted["written"] == ["trip/model", "trip/adata.h5ad", "trip/summary.json"]
    assert all((folder / name).exists() for name in fitted["written"])
    found = read_fit(folder / "trip")
    model = load(folder / "trip/model")
    density = log_predictive_density(model, found.heldout.batch(), n_samples=50).mean().item()
    assert fitted["heldout_log_density_per_cell"] == pytest.approx(density, rel=1e-6)

    check = ["check", "trip/model", "trip/adata.h5ad", "--draws", "45", "--out", "checked"]
    assert run_in(folder, *check, "--json") == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked.pop("written") == [
        "checked/check.json",
        "checked/genes.csv",
        "checked/report.html",
    ]
    assert checked == json.loads((folder / "checked/check.json").read_text())
    assert checked["library size"]["n_new"] == fitted["n_heldout"]

    assert run_in(folder, "report", "trip", "--draws", "45", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"report": "trip/report.html", "written": ["trip/report.html"]}
    page = (folder / "trip/report.html").read_text()
    assert fitted["top_genes"]["factor_1"][0] in page
    assert checked["library size"]["verdict"] in html.unescape(page)


def test_text_of_fit_and_check_is_complete(folder, capsys):
    capsys.readouterr()
    assert run_in(folder, "fit", "good.h5ad", "--out", "text", *SHORT) == 0
    text = capsys.readouterr().out
    summary = json.loads((folder / "text/summary.json").read_text())
    assert f"{summary['heldout_log_density_per_cell']:.2f} nats per cell, 16 cells" in text
    for name, genes in summary["top_genes"].items():
        line = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert [gene.strip(",").lstrip("-") for gene in line.split()[1:]] == genes
    assert text.splitlines()[-1] == "wrote text/summary.json"
    assert run_in(folder, "check", "text/model", "text/adata.h5ad", "--draws", "45") == 0
    text = capsys.readouterr().out
    assert "16 units against 45 replicated data sets" in text
    assert "gene-gene residual correlation" in text


def test_checks_can_be_chosen_and_models_compared(folder, capsys):
    capsys.readouterr()
    chosen = ["--discrepancy", "quantile(0.9)", "--discrepancy", "per_group(mean, 'group')"]
    data = ["fit/adata.h5ad", "--draws", "45"]
    assert run_in(folder, "check", "fit/model", *data, *chosen, "--out", "chosen") == 0
    text = capsys.readouterr().out
    assert "quantile(0.9)" in text
    assert " groups" in text
    assert run_in(folder, "check", "fit/model", *data, "--cap", "--out", "capped") == 0
    assert "6 units against 45" in capsys.readouterr().out  # a tenth of 64
    capped = json.loads((folder / "capped/check.json").read_text())
    assert all(found["calibrated"] for found in capped.values())
    names = json.loads((folder / "chosen/check.json").read_text()).keys()
    assert list(names) == ["quantile(0.9)", "per_group(mean, 'group')"]

    again = ["fit", "good.h5ad", "--out", "rival", *SHORT]
    assert run_in(folder, *again, "--factors", "1") == 0
    capsys.readouterr()
    models = ["fit/model", "rival/model", "--data", "fit/adata.h5ad", "--draws", "45"]
    assert run_in(folder, "compare", *models, "--json", "--out", "both") == 0
    document = json.loads(capsys.readouterr().out)
    scores = [row["log score"] for row in document["models"]]
    assert scores == sorted(scores, reverse=True)
    assert document["models"][0]["difference to the best"] == 0
    assert {row["model"] for row in document["models"]} == {"fit", "rival"}
    assert document["checks"].keys() == {"fit", "rival"}
    page = (folder / "both/report.html").read_text()
    assert html.escape(document["statement"]) in page
    assert run_in(folder, "compare", *models, "--score", "crps", "--out", "both") == 0
    assert {"fit", "rival", "CRPS"} <= set(capsys.readouterr().out.split())


def test_several_studies_are_fitted_checked_and_compared(folder, capsys):
    capsys.readouterr()
    studies = ["--study-key", "disease", "--batch-key", "batch", "--shared", "2", "--specific", "1"]
    assert run_in(folder, "fit", "studies.h5ad", "--out", "two", *studies, *SHORT) == 0
    text = capsys.readouterr().out
    summary = json.loads((folder / "two/summary.json").read_text())
    assert set(summary["blocks"].values()) <= {"shared", "HC", "Lung"}
    assert summary["blocks"]["shared_1"] == "shared"
    for name, genes in summary["top_genes"].items():
        line = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert [gene.strip(",").lstrip("-") for gene in line.split()[1:]] == genes
    for study, density in summary["heldout_log_density_per_study"].items():
        assert f"  {study}: {density:.2f} nats per cell" in text
    data = ["two/adata.h5ad", "--draws", "45", "--out", "two_checked"]
    check = ["check", "two/model", *data, "--discrepancy", "per_group(mean, 'disease')"]
    assert run_in(folder, *check) == 0
    assert "16 units against 45" in capsys.readouterr().out
    pooled = ["fit", "studies.h5ad", "--stratify", "disease", "--out", "pooled", *SHORT]
    assert run_in(folder, *pooled) == 0
    capsys.readouterr()
    models = ["two/model", "pooled/model", "--data", *data, "--discrepancy", "mean"]
    assert run_in(folder, "compare", *models, "--score", "log", "--json") == 0
    assert {m["model"] for m in json.loads(capsys.readouterr().out)["models"]} == {"two", "pooled"}
    assert run_in(folder, "report", "two", "--group-key", "disease", "--draws", "45") == 0
    page = html.unescape((folder / "two/report.html").read_text())
    n_shared = list(summary["blocks"].values()).count("shared")
    assert f"{len(summary['blocks'])} factors ({n_shared} shared, " in page
    assert "<th>block</th>" in page.replace(' scope="col"', "")


def test_info_of_versions_and_of_a_model(folder, capsys):
    capsys.readouterr()
    assert run_in(folder, "info", "--json") == 0
    assert {"probinterp", "torch", "python", "cuda"} <= json.loads(capsys.readouterr().out).keys()
    assert run_in(folder, "info", "fit/model", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"]["class"] == "SparseVAE"
    assert run_in(folder, "info", "fit/model") == 0
    assert "    n_features: 20\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["", "demo", "fit", "check", "compare", "report", "info", "clt", "clt evaluate"]
)
def test_help_ends_with_0(folder, capsys, command):
    capsys.readouterr()
    assert run_in(folder, *command.split(), "--help") == 0
    assert "Usage: probinterp" in capsys.readouterr().out


def test_no_arguments_is_help(folder, capsys):
    capsys.readouterr()
    assert run_in(folder) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.engine
def test_demo_of_platelets_without_the_series_says_that_it_is_synthetic(
    folder, capsys, monkeypatch
):
    monkeypatch.setenv("PROBINTERP_DATA", str(folder / "nowhere"))
    truth = simulate.platelet_like(12, 110, 1, 1, n_studies=2, n_batches=2, seed=0)
    monkeypatch.setattr(simulate, "platelet_like", lambda **_: truth)
    short = ["--max-epochs", "2", "--refits", "1", "--device", "cpu", "--seed", "1"]
    capsys.readouterr()
    assert run_in(folder, "demo", "platelets", *short, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["synthetic"]
    assert found["data"] == "Platelet RNA, SYNTHETIC DATA"
    assert "Get GSE68086" in found["note"]
    assert (folder / "platelets" / "report.html").is_file()
    assert {"platelets/report.html", "platelets/contrasts.csv"} <= set(found["written"])
