import re
import shutil
from html import unescape

import pytest
import torch

from probinterp.genomics import marker_groups
from probinterp.genomics.reference import save_reference
from probinterp.inference import save
from probinterp.jobs import report_directory
from probinterp.jobs.checking import check_cells
from probinterp.jobs.fitting import read_fit
from probinterp.jobs.pages import compare_densities, factor_table


@pytest.fixture(scope="module")
def folder(fitted_folder, tmp_path_factory):
    return shutil.copytree(fitted_folder, tmp_path_factory.mktemp("report") / "fit")


@pytest.fixture(scope="module")
def page(folder):
    path = report_directory(folder, group_key="group", n_draws=45)
    assert path == folder / "report.html"
    return unescape(path.read_text())


def test_report_holds_genes_groups_and_verdicts(folder, page):
    found = read_fit(folder)
    for row in factor_table(found, "group").to_dict("records"):
        assert row["rise"] in page
        assert row["marks"] in page
    checked = check_cells(found.model, found.heldout, n_obs=len(found.train), n_draws=45)
    for verdict in checked.verdicts():
        assert verdict.statement in page
    for note in checked.notes():
        assert note in page


def test_report_needs_nothing_from_elsewhere(page):
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "<script" not in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).split()


def test_factor_table_names_the_separated_group(folder):
    found = read_fit(folder)
    table = factor_table(found, "group").set_index("factor")
    groups = found.adata.obs["group"].drop("cell7").to_numpy()  # it has no count
    best = marker_groups(found.factors.scores, groups).query("best").set_index("factor")
    for name, row in table.iterrows():
        assert row["AUC"] == pytest.approx(best.loc[name, "separation"], abs=1e-3)
        side = "high" if best.loc[name, "sign"] > 0 else "low"
        named = f"{best.loc[name, 'group']} ({side})"
        assert row["marks"] == (named if best.loc[name, "separation"] >= 0.8 else "-")
    assert table["genes"].tolist() == found.factors.support.sum(0).tolist()


def test_densities_are_compared_by_cell():
    ours, theirs = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 2.0, 1.0])
    row = compare_densities({"ours": ours, "theirs": theirs}).iloc[1]
    assert row["nats per cell"] == pytest.approx(1.0)
    assert row["difference"] == pytest.approx(2.0)
    assert row["standard error"] == pytest.approx((7 / 3) ** 0.5)


def test_a_fit_without_factors_is_reported_as_such(fitted_folder, tmp_path):
    folder = shutil.copytree(fitted_folder, tmp_path / "fit")
    found = read_fit(folder)
    found.model.load_state_dict(
        {
            name: torch.zeros_like(value) if name == "sparse.weight" else value
            for name, value in found.model.state_dict().items()
        }
    )
    save(found.model, folder / "model", found.restarts.histories[0], overwrite=True)
    save_reference(found.train, folder / "model")
    assert len(read_fit(folder).factors.columns) == 0
    page = unescape(report_directory(folder, group_key="group", n_draws=5).read_text())
    assert "No factor reaches a gene" in page
    assert "0 factors found; cell groups marked: none." in page


def test_factor_table_lists_blocks_and_names(studies_folder):
    fitted = read_fit(studies_folder)
    table = factor_table(fitted, "disease")
    assert list(table.columns[:3]) == ["factor", "block", "marks"]
    assert list(table["factor"]) == fitted.factor_names
    assert list(table["block"]) == fitted.blocks
    size = fitted.factors.support.sum(0).tolist()
    assert list(table["genes"]) == size
