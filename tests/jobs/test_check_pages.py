"""Sections and pages made of checks whose numbers are known."""

import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch

from probinterp.criticism import Score, compare_scores, discrepancies, from_arrays, pop_pc_suite
from probinterp.jobs.check_pages import checks_section, write_comparison_page
from probinterp.jobs.checking import Checked
from probinterp.reporting import Table

NAMES = ["small", "large", "spoiled", "constant"]
CHECKS = {
    "average": discrepancies.mean,
    "variance": discrepancies.feature_variance,
}


@pytest.fixture(autouse=True)
def _closed_figures():
    import matplotlib

    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def checked_of(spoil=1.0, constant=2.0, n_draws=399):
    """Normal data of different scales and a constant; one column spread by a factor."""
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 100.0, 1.0, 0.0])
    replicated = 2 + scale * rng.normal(size=(n_draws, 50, 4))
    x = 2 + scale * rng.normal(size=(50, 4)) * [1, 1, spoil, 1]
    x[0, 3] = constant
    draws = from_arrays(replicated)
    results = pop_pc_suite(draws, torch.tensor(x), CHECKS, n_obs=1000)
    return Checked(results, NAMES)


def test_the_overview_holds_the_numbers_of_the_results():
    checked = checked_of(spoil=3.0)
    summary = checks_section("model", checked).summary
    frame = summary.frame.set_index("check")
    mean, variance = checked.results.values()
    assert frame.loc["average", "z"] == pytest.approx(mean.z.item())
    assert frame.loc["average", "p"] == pytest.approx(mean.p_two_sided.item())
    assert np.isnan(frame.loc["average", ["median |z|", "joint p"]].astype(float)).all()
    assert np.isnan(frame.loc["variance", "z"])
    assert frame.loc["variance", "median |z|"] == pytest.approx(variance.z.abs().median().item())
    assert frame.loc["variance", "joint p"] == pytest.approx(variance.aggregate("ranks"))
    assert 1 / 400 <= frame.loc["variance", "joint p"] <= 0.05
    assert summary.formats == {"z": "+.2f", "p": ".2g", "median |z|": ".2f", "joint p": ".2g"}


def test_columns_without_a_number_are_left_out():
    checked = checked_of()
    alone = Checked({"average": checked.results["average"]}, NAMES)
    assert list(checks_section("m", alone).summary.frame) == ["check", "z", "p", "misfit"]
    vectors = Checked({"variance": checked.results["variance"]}, NAMES)
    assert "z" not in checks_section("m", vectors).summary.frame


def test_captions_are_the_verdicts():
    checked = checked_of()
    captions = [figure.caption for figure in checks_section("model", checked).figures]
    assert captions == [str(verdict) for verdict in checked.verdicts()]
    assert captions[0].startswith("average shows no misfit")


def test_values_of_different_sizes_are_drawn_in_their_own_units():
    checked = checked_of(spoil=3.0)
    ax = checks_section("model", checked).figures[1].figure
    assert ax.get_xlabel().endswith("[sd of the replicates from their mean]")
    heldout = ax.lines[1].get_xdata()
    assert sorted(heldout) == pytest.approx(sorted(checked.results["variance"].z.tolist()))


def test_infinite_effects_are_drawn_at_the_edge():
    checked = checked_of(constant=5.0)
    assert torch.isinf(checked.results["variance"].z).tolist() == [False, False, False, True]
    ax = checks_section("model", checked).figures[1].figure
    assert ax.get_xlabel() == "genes in order of z"
    triangles = [line for line in ax.lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert len(triangles) == 1


def test_refits_are_drawn_where_there_are_some():
    result = checked_of().results["average"]
    object.__setattr__(result, "refitted", torch.linspace(-9, 9, 59, dtype=torch.float64))
    ax = checks_section("model", Checked({"average": result}, NAMES)).figures[0].figure
    assert ax.get_xlabel() == "excess of average"
    assert "among 59 refits" in ax.get_title(loc="left")


def test_rankings_say_how_many_of_the_values_they_show():
    (table,) = checks_section("model", checked_of(spoil=3.0)).tables
    assert table.caption == "variance: all 4 values, with two-sided p."
    assert table.frame.iloc[0, 0] == "spoiled"
    assert "held-out" in table.frame


def test_a_comparison_says_which_checks_fail_and_draws_the_scores(tmp_path):
    checked = {
        "wrong": checked_of(spoil=3.0),
        "right": checked_of(),
        "short": checked_of(n_draws=9),
    }
    zero = torch.zeros(50, dtype=torch.float64)
    scores = {
        name: Score("CRPS", torch.linspace(start, 2, 50, dtype=torch.float64), False, zero, 9)
        for name, start in {"wrong": 1.0, "right": 0.5, "short": 0.9}.items()
    }
    comparison = compare_scores(scores)
    path = tmp_path / "report.html"
    table = {"scores": Table(pd.DataFrame({"a": [1]}), "Scores.")}
    write_comparison_page(path, comparison, table, checked, {"seed": 0})
    page = unescape(path.read_text())
    assert comparison.statement in page
    assert "wrong fails 1 of 2 checks (variance)." in page
    assert "right fails no check." in page
    assert "short fails no check; no verdict on average, variance." in page
    states = re.findall(r'<li class="(\w+)">', page)
    assert states == ["note", "failed", "passed", "note"]
    assert "CRPS minus that of the best, per unit" in page


def test_infinite_scores_are_left_out_of_the_picture(tmp_path):
    zero = torch.zeros(50, dtype=torch.float64)
    values = torch.linspace(0, 1, 50, dtype=torch.float64)
    spoiled = values.clone()
    spoiled[0] = -torch.inf
    scores = {"a": Score("log score", values, True, zero, 9)}
    scores["b"] = Score("log score", spoiled, True, zero, 9)
    checked = {"a": checked_of(), "b": checked_of()}
    path = tmp_path / "report.html"
    write_comparison_page(path, compare_scores(scores), {}, checked, {})
    assert "minus that of the best" not in path.read_text()
