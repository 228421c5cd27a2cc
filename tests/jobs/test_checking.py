import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from probinterp.criticism import FunctionDraw, discrepancies, pop_pc_suite
from probinterp.jobs import check_cells, check_file
from probinterp.jobs.checking import CELL_CHECKS, Checked
from probinterp.jobs.fitting import read_fit, read_h5ad


@pytest.fixture(scope="module")
def checked(fitted_folder):
    found = read_fit(fitted_folder)
    return check_cells(found.model, found.heldout, n_obs=len(found.train), n_draws=45)


def test_files_hold_the_numbers_of_the_result(fitted_folder, checked, tmp_path):
    path = fitted_folder / "adata.h5ad"
    again, summary = check_file(fitted_folder / "model", path, tmp_path, n_draws=45)
    assert json.loads((tmp_path / "check.json").read_text()) == summary
    assert summary.keys() == CELL_CHECKS.keys()
    for name, result in checked.results.items():
        torch.testing.assert_close(again.results[name].replicated, result.replicated)
        assert summary[name]["verdict"] == str(result.verdict(0.05))
    genes = pd.read_csv(tmp_path / "genes.csv", index_col="gene")
    expected = checked.results["gene variance"].z.numpy()
    np.testing.assert_allclose(genes["gene variance: z"], expected, rtol=1e-6)
    assert list(genes.index) == [f"gene{j}" for j in range(24)]


def test_order_of_genes_and_extra_genes_change_nothing(fitted_folder, checked, tmp_path):
    adata = read_h5ad(fitted_folder / "adata.h5ad")
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    extra = anndata.AnnData(
        np.ones((adata.n_obs, 1), dtype=np.float32),
        obs=adata.obs[[]],
        var=pd.DataFrame(index=["stranger"]),
    )
    both = anndata.concat([shuffled, extra], axis=1)
    both.obs = adata.obs
    both.write_h5ad(tmp_path / "shuffled.h5ad")
    model = fitted_folder / "model"
    again, _ = check_file(model, tmp_path / "shuffled.h5ad", tmp_path / "out", n_draws=45)
    expected = checked.genes()
    pd.testing.assert_frame_equal(again.genes(), expected, rtol=1e-4)
    pd.testing.assert_frame_equal(again.table(), checked.table(), rtol=1e-4)


def test_all_cells_checks_every_new_cell_and_refuses_those_of_the_fit(
    fitted_folder, file, tmp_path
):
    model, adata = fitted_folder / "model", read_h5ad(fitted_folder / "adata.h5ad")
    new = adata[adata.obs["probinterp_split"] == "heldout"].copy()
    del new.obs["probinterp_split"]
    new.write_h5ad(tmp_path / "new.h5ad")
    everyone, _ = check_file(model, tmp_path / "new.h5ad", tmp_path, all_cells=True, n_draws=3)
    assert next(iter(everyone.results.values())).n_new == len(new)
    with pytest.raises(ValueError, match=f"{99 - len(new)} of the 99 cells to check were used to"):
        check_file(model, file, tmp_path, all_cells=True, n_draws=3)


def results_of(make_counts, n_draws=199, n_genes=3):
    """Checks of Poisson(4) data by a model that says Poisson(4)."""
    torch.manual_seed(0)
    likelihood = torch.distributions.Independent(
        torch.distributions.Poisson(torch.full((60, n_genes), 4.0)), 1
    )
    draws = [FunctionDraw(likelihood.sample, lambda x: likelihood) for _ in range(n_draws)]
    checks = {
        "library size": discrepancies.library_size,
        "gene variance": discrepancies.feature_variance,
    }
    x = make_counts(likelihood.sample())
    names = [f"g{j}" for j in range(n_genes)]
    return Checked(pop_pc_suite(draws, x, checks, reference=draws[0]), names)


def test_verdicts_name_the_gene_that_fails():
    def spoil(x):
        x[:30, 1] += 30
        return x

    overall, per_gene = results_of(spoil).verdicts()
    assert overall.passed is False
    assert str(overall).startswith("library size shows misfit: its held-out value")
    assert per_gene.passed is False
    assert "misfit in 1 of 3 genes" in str(per_gene)
    assert "largest effects in sd: g1 +" in str(per_gene)
    ranking = results_of(spoil).ranking("gene variance")
    assert ranking["gene"].iloc[0] == "g1"
    assert ranking["misfit"].tolist() == [True, False, False]
    assert results_of(spoil).table()["misfit"].tolist() == ["yes", "1 of 3 genes"]


def test_verdicts_pass_a_right_model():
    overall, per_gene = results_of(lambda x: x).verdicts()
    assert overall.passed
    assert per_gene.passed
    assert "no misfit" in str(overall)
    assert "shows no misfit in any of 3 genes" in str(per_gene)


def test_too_few_draws_give_no_verdict():
    few = results_of(lambda x: x, n_draws=20)
    assert [v.passed for v in few.verdicts()] == [None, None]
    assert all(str(v).startswith("No verdict on ") for v in few.verdicts())
    assert few.table()["misfit"].tolist() == ["no verdict", "0 of 3 genes, no verdict"]


def test_a_gene_that_the_draws_cannot_judge_is_no_verdict_in_the_table():
    """One gene of 60 fails: 2 * 60 / .05 - 1 = 2,399 draws would say so, 199 cannot."""

    def spoil(x):
        x[0, 1] += 40
        return x

    found = results_of(spoil, n_genes=60)
    verdict = found.verdicts()[1]
    assert (verdict.passed, verdict.joint) == (None, True)
    assert "the 60 genes taken together show no misfit" in str(verdict)
    assert ", but g1 lies " in str(verdict)
    assert "199 draws are too few to judge single genes (2,399 would do); largest" in str(verdict)
    row = found.table().iloc[1]
    assert (row["misfit"], row["p"]) == ("no verdict", verdict.p_value)
    assert row["p"] == found.results["gene variance"].aggregate("ranks")
    assert row["largest"].startswith("g1 +")
    assert set(found.ranking("gene variance")["misfit"]) == {"not judged"}
    fits = results_of(lambda x: x, n_genes=30).table().iloc[1]
    assert fits["misfit"] == "no, all together"
    wide = results_of(lambda x: 2 * x, n_genes=60).table().iloc[1]
    assert wide["misfit"] == "60 of 60 genes"
    assert wide["p"] == pytest.approx(2 / 200)


def test_notes_are_said_once(checked):
    notes = checked.notes()
    assert len(notes) == len(set(notes))
    assert sum("Global parameters are point estimates" in note for note in notes) == 1


@pytest.mark.parametrize("n_draws", [1, 0, -1])
def test_fewer_than_two_draws_are_refused_before_any_work(n_draws):
    with pytest.raises(ValueError, match=f"n_draws must be at least 2, got {n_draws}"):
        check_file("nowhere", "nothing", "out", n_draws=n_draws)
