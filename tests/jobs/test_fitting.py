import json
import shutil

import anndata
import numpy as np
import pytest
import torch
from pyro import poutine

from probinterp.genomics.files import read_h5ad
from probinterp.inference import load, log_predictive_density, read_history
from probinterp.inference.svi import _Loop
from probinterp.jobs import fit_cells, fit_file
from probinterp.jobs.fitting import SPLIT_COLUMN, output_folder, read_fit
from probinterp.models import MultiStudySparseVAE


def test_summary_is_the_recomputed_density(fitted_folder):
    summary = json.loads((fitted_folder / "summary.json").read_text())
    found = read_fit(fitted_folder)
    density = log_predictive_density(found.model, found.heldout.batch(), n_samples=50)
    assert summary["heldout_log_density_per_cell"] == pytest.approx(density.mean().item(), rel=1e-6)
    assert (summary["n_train"], summary["n_heldout"]) == (len(found.train), len(found.heldout))
    history = read_history(fitted_folder / "model")
    assert summary["epochs"] == len(history.records) == 10


def test_read_fit_gives_the_factors_of_the_fit(cells, fit_options, tmp_path, file):
    adata = cells.copy()
    fitted = fit_cells(adata, **fit_options)
    fit_file(file, tmp_path, **fit_options)
    again = read_fit(tmp_path)
    torch.testing.assert_close(again.factors.scores, fitted.factors.scores)
    torch.testing.assert_close(again.factors.effects, fitted.factors.effects)
    assert list(again.train.obs_names) == list(fitted.train.obs_names)
    assert list(again.heldout.obs_names) == list(fitted.heldout.obs_names)
    written = anndata.read_h5ad(tmp_path / "adata.h5ad")
    kept = (written.obs[SPLIT_COLUMN] != "dropped").to_numpy()
    np.testing.assert_allclose(
        written.obsm["X_sparse_vae"][kept], fitted.factors.scores.numpy(), rtol=1e-5, atol=1e-6
    )
    assert np.isnan(written.obsm["X_sparse_vae"][~kept]).all()


def test_same_seed_same_summary_other_seed_another(file, fit_options, tmp_path):
    first, again, other = (
        fit_file(file, tmp_path / name, seed=seed, **fit_options)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first["heldout_log_density_per_cell"] != other["heldout_log_density_per_cell"]


def test_cell_without_counts_is_marked_as_dropped(fitted_folder):
    obs = anndata.read_h5ad(fitted_folder / "adata.h5ad").obs[SPLIT_COLUMN]
    assert list(obs.index[obs == "dropped"]) == ["cell7"]
    assert (obs == "train").sum() + (obs == "heldout").sum() == 99


def test_top_effects_have_the_signs_and_order_of_the_factors(fitted_folder):
    summary = json.loads((fitted_folder / "summary.json").read_text())
    effects, genes = read_fit(fitted_folder).factors.effects, [f"gene{j}" for j in range(24)]
    for k, name in enumerate(summary["top_genes"]):
        order = effects[:, k].abs().argsort(descending=True, stable=True)[:10].tolist()
        assert summary["top_genes"][name] == [genes[j] for j in order]
        assert summary["top_effects"][name] == pytest.approx(effects[order, k].tolist(), rel=1e-5)


def test_layer_and_values_survive_the_round_trip(cells, fit_options, tmp_path):
    adata = cells.copy()
    adata.layers["log"] = np.log1p(adata.X.toarray()) + 0.01
    adata.write_h5ad(tmp_path / "values.h5ad")
    options = fit_options | {"layer": "log", "counts": False}
    fit_file(tmp_path / "values.h5ad", tmp_path / "fit", **options)
    again = read_fit(tmp_path / "fit")
    expected = adata[again.train.obs_names].layers["log"]
    np.testing.assert_allclose(again.train.batch().x.numpy(), expected, rtol=1e-6)
    assert type(load(tmp_path / "fit" / "model").likelihood).__name__ == "GaussianLikelihood"


def test_best_of_several_restarts_is_kept(file, fit_options, tmp_path):
    summary = fit_file(file, tmp_path, restarts=3, seed=5, **fit_options)
    assert len(set(summary["objectives"])) == 3
    best = read_history(tmp_path / "model").seed
    assert best == 5 + int(np.argmax(summary["objectives"]))


def test_interrupt_before_the_first_epoch_writes_nothing(file, fit_options, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("probinterp.inference.svi._Loop.epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_file(file, tmp_path, **fit_options)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_inside_a_pyro_handler_keeps_what_was_learned(
    file, fit_options, tmp_path, monkeypatch
):
    epoch = _Loop.epoch

    def struck(loop, *arguments):
        epoch(loop, *arguments)
        if loop.state.epoch == 4:
            poutine.trace_messenger.TraceMessenger().__enter__()
            raise KeyboardInterrupt

    monkeypatch.setattr(_Loop, "epoch", struck)
    summary = fit_file(file, tmp_path, **fit_options)
    assert (summary["stopped"], summary["epochs"]) == ("interrupted", 4)
    again = log_predictive_density(
        load(tmp_path / "model"), read_fit(tmp_path).heldout.batch(), n_samples=50
    )
    assert summary["heldout_log_density_per_cell"] == pytest.approx(again.mean().item(), rel=1e-6)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(ValueError, match=r"text\.h5ad is not a readable \.h5ad file"):
        read_h5ad(tmp_path / "text.h5ad")
    with pytest.raises(FileNotFoundError, match="is a directory; expected an .h5ad file"):
        read_h5ad(tmp_path)
    with pytest.raises(NotADirectoryError, match="a file is in the way"):
        output_folder(tmp_path / "text.h5ad")


@pytest.mark.parametrize("content", ["no", "{}", '{"objectives": []}', '{"objectives": ["x"]}'])
def test_damaged_summary_is_named(fitted_folder, tmp_path, content):
    folder = shutil.copytree(fitted_folder, tmp_path / "fit")
    (folder / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=r"summary\.json is damaged"):
        read_fit(folder)


def test_several_studies_survive_the_round_trip(studies_folder):
    found = read_fit(studies_folder)
    model, summary = found.model, json.loads((studies_folder / "summary.json").read_text())
    assert type(model) is MultiStudySparseVAE
    assert (model.n_studies, model.n_nuisance_levels) == (3, 2)
    assert model.block.tolist() == [-1, -1, 0, 1, 2]
    assert model.start == "components"
    assert found.train.study_names == ("GBM", "HC", "Lung")
    assert found.train.nuisance_names == ("b0", "b1")
    assert found.train.batch().study.bincount().tolist() == [24, 40, 32]  # four fifths of each
    assert summary["blocks"] == dict(zip(found.factor_names, found.blocks, strict=True))
    assert list(summary["blocks"])[0] == "shared_1"
    assert set(summary["top_genes"]) <= set(summary["blocks"])
    density = log_predictive_density(model, found.heldout.batch(), n_samples=50)
    per_study = summary["heldout_log_density_per_study"]
    own = found.heldout.batch().study == 1
    assert per_study["HC"] == pytest.approx(density[own].mean().item(), rel=1e-6)
    written = anndata.read_h5ad(studies_folder / "adata.h5ad")
    assert "X_multistudy_sparse_vae" in written.obsm
    about = written.uns["multistudy_sparse_vae"]
    assert list(about["block"]) == found.blocks
    assert list(about["studies"]) == ["GBM", "HC", "Lung"]
    assert (about["params"]["n_shared"], about["params"]["n_specific"]) == (2, 1)


def test_rates_of_several_studies_are_those_of_counts(studies_folder):
    found = read_fit(studies_folder)
    assert found.model.sparse.spike == pytest.approx(len(found.train))
    assert found.model.sparse.slab == pytest.approx(0.01 * len(found.train))


REFUSED = [
    ({"study_key": "one"}, r"obs\['one'\] names one study only, 'all': shared and specific"),
    ({"study_key": None}, "for several studies: give study_key=... too"),
    ({"study_key": None, "batch_key": None, "n_shared": None}, "give study_key=... too"),
    ({"n_specific": -1}, "n_specific must be a whole number of columns, got -1"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_does_not_go_with_studies_is_refused(several_studies, study_options, options, text):
    with pytest.raises(ValueError, match=text):
        fit_cells(several_studies.copy(), **study_options | options)


def test_no_study_may_be_called_shared(several_studies, study_options):
    adata = several_studies.copy()
    adata.obs["disease"] = adata.obs["disease"].astype(str).replace("HC", "shared")
    with pytest.raises(ValueError, match=r"a study is called 'shared', .* obs\['disease'\]"):
        fit_cells(adata, **study_options)
