"""Checks of proxies: streaming, adjustment, and what they flag; calibration in the slow tests."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

from probinterp.criticism import (
    FunctionDraw,
    PointEstimateWarning,
    ProxyBlock,
    TokenLayout,
    check_proxy,
    check_proxy_blocks,
    fit_residual_model,
    proxy_suite,
    residual_draws,
)
from probinterp.criticism.multiplicity import adjust

FOLDER = Path(__file__).parents[2] / "benchmarks" / "calibration"
sys.path.insert(0, str(FOLDER))
study = importlib.import_module("proxies")
sys.path.remove(str(FOLDER))

TAILS = ("norm_quantile(0.999)", "largest_channel")


def test_suite_fits_the_layout():
    everything = list(proxy_suite(study.layout_of(2)))
    assert everything[:5] == ["nmse", *TAILS, "layer_correlation", "moran_i"]
    assert len(everything) == 12
    one_layer = TokenLayout(torch.arange(2), torch.zeros(2, dtype=torch.int64), 1)
    assert set(everything) - set(proxy_suite(one_layer)) == {"layer_correlation", "moran_i"}


@pytest.fixture
def simulated():
    torch.manual_seed(0)
    layout = study.layout_of(12)
    prediction, calibration, new = (study.normal(layout) for _ in range(3))
    model = fit_residual_model(calibration, layout)
    return layout, residual_draws(prediction, layout, model, 30), prediction + new


def parted(layout, draws, x, n_images):
    """The same replicates in blocks of images."""
    replicates = [draw.replicate() for draw in draws]
    blocks = []
    for index, part in layout.blocks(n_images):
        law = draws.reference.likelihood(x)
        some = torch.distributions.Independent(
            torch.distributions.Normal(law.mean[index], law.variance[index].sqrt()), 2
        )
        reference = FunctionDraw(some.sample, lambda x, some=some: some)
        some_draws = [
            FunctionDraw(lambda r=r, i=index: r[i], reference.likelihood) for r in replicates
        ]
        blocks.append(ProxyBlock([reference, *some_draws], x[index], part))
    return blocks


@pytest.mark.parametrize("n_images", [12, 5, 1])
def test_blocks_of_images_give_what_all_images_give(simulated, n_images):
    layout, draws, x = simulated
    whole = check_proxy(draws, x, layout)
    blocks = check_proxy_blocks(parted(layout, draws, x, n_images))
    assert blocks.n_images == whole.n_images == 12
    for name, pooled in whole.pooled.items():
        assert torch.allclose(blocks.pooled[name].replicated, pooled.replicated, rtol=2e-5), name
        assert torch.allclose(blocks.pooled[name].heldout, pooled.heldout, rtol=2e-5), name
        same = (blocks.images[name].p_value - whole.images[name].p_value).abs() < 0.05
        assert same.all(), name


def test_rows_hold_what_the_results_hold(simulated):
    layout, draws, x = simulated
    result = check_proxy(draws, x, layout)
    rows = result.rows()
    assert len(rows) == 10 * 6 + 2 + 3
    chi = [row for row in rows if row["discrepancy"] == "chi_square"]
    assert [row["cell"] for row in chi] == list(layout.cells)
    pooled = result.pooled["chi_square"]
    holm = adjust(pooled.p_two_sided, "holm")
    for c, row in enumerate(chi):
        assert row["p"] == pooled.p_value[c].item()
        assert row["p_holm"] == holm[c].item()
        assert row["mc_error"] == pytest.approx((row["p"] * (1 - row["p"]) / 30) ** 0.5)
        assert row["ks"] == result.images["chi_square"].ks[c].item()


def test_family_p_is_the_rank_of_the_largest_deviation(simulated):
    layout, draws, x = simulated
    result = check_proxy(draws, x, layout)
    pooled = result.pooled["nmse"]
    rows = torch.cat([pooled.heldout, pooled.replicated]).double()
    z = ((rows - rows.mean(0)) / rows.std(0)).abs()
    for c in range(6):
        count = sum(max(z[s]) >= z[0, c] for s in range(31))
        assert result.p_family("nmse")[c].item() == pytest.approx(count.item() / 31)


def test_infinite_values_are_extreme(simulated):
    layout, draws, x = simulated
    constant = x.mean(0).expand_as(x).clone()  # no spread and not predicted
    result = check_proxy(draws, constant, layout)
    assert result.pooled["nmse"].heldout.isinf().all()
    assert torch.allclose(result.p_family("nmse"), torch.full((6,), 1 / 31, dtype=torch.float64))


def test_levels_that_the_draws_cannot_reach_are_refused(simulated):
    layout, draws, x = simulated
    result = check_proxy(draws, x, layout)
    with pytest.raises(ValueError, match="with 30 replicates cells can be rejected at levels of"):
        result.flagged(0.02)


def test_difference_of_two_checks(simulated):
    layout, draws, x = simulated
    new, classical = check_proxy(draws, x, layout), check_proxy(draws, x, layout, check="ppc")
    assert not classical.calibrated
    assert "used twice" in classical.pooled["nmse"].notes[0]
    difference = new.minus(classical)
    assert set(difference) == set(new.pooled)
    assert all(value.abs().amax() == 0 for value in difference.values())
    fewer = check_proxy(draws, x, layout, make_suite=lambda la: {"d": proxy_suite(la)["nmse"]})
    with pytest.raises(ValueError, match="differ in discrepancies or cells"):
        new.minus(fewer)


def test_draws_say_that_parameters_are_point_estimates(simulated):
    layout, _, x = simulated
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros_like(x), 1.0), 2)

    class Draws(list):
        point_estimate = True

    draws = Draws([FunctionDraw(law.sample, lambda x: law, "covariates")] * 5)
    with pytest.warns(PointEstimateWarning):
        found = check_proxy(draws, x, layout)
    assert not found.calibrated
    assert found.pooled["nmse"].local is None
    draws.local = "covariates"
    assert check_proxy(draws, x, layout, n_obs=1000).pooled["nmse"].local == "covariates"


REFUSED = {
    "no block": (lambda la, dr, x: check_proxy_blocks([]), "no block of images"),
    "shape": (lambda la, dr, x: check_proxy(dr, x[:, :2], la), r"\(204, 3, D\) by their layout"),
    "unequal": (
        lambda la, dr, x: check_proxy_blocks(
            [
                ProxyBlock(dr, x, la),
                ProxyBlock([], x[:2], TokenLayout(*torch.zeros(2, 2).long(), 3)),
            ]
        ),
        "the first has 3 layers and 17 tokens, another 3 and 2",
    ),
    "replicate": (
        lambda la, dr, x: check_proxy(
            [dr.reference, FunctionDraw(lambda: x[1:], dr.reference.likelihood)], x, la
        ),
        "must return the shape of the data",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(simulated, name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(*simulated)


def test_planted_misfits_are_flagged_by_their_discrepancy_and_the_truth_is_not():
    """One data set each, family-wise level .05 / 12."""
    flagged = {
        name: set(study.WORLDS[name](249, 5).flagged(0.05 / 12))
        for name in (
            "residual model",
            "correlation .3 between layers",
            "neighbouring patches alike",
        )
    }
    assert flagged["residual model"] == set()
    assert flagged["correlation .3 between layers"] == {"layer_correlation"}
    assert flagged["neighbouring patches alike"] == {"moran_i"}
    heavy = study.WORLDS["heavy tails"](99, 5).flagged(0.05)
    assert all("patch" in " ".join(heavy[name]) for name in TAILS)


def test_script_writes_its_table(monkeypatch, tmp_path):
    out = tmp_path / "table.csv"
    monkeypatch.setattr(sys, "argv", ["proxies", "--sets", "2", "--draws", "9", "--out", str(out)])
    monkeypatch.setattr(study, "WORLDS", dict(list(study.WORLDS.items())[:2]))
    study.main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 12
    assert all(0 <= float(row["family"]) <= 1 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["residual model", "latent codes"])
def test_checks_are_calibrated_under_the_model(world):
    """200 data sets; Kolmogorov-Smirnov p by Bonferroni over the cells of a discrepancy."""
    for name, found in study.p_values(world, 200, 39).items():
        rates = study.rates(found)
        assert rates["ks_p"] > 0.01, (name, rates)
        assert rates["family"] <= 0.12, (name, rates)  # 99.99 % of a correct check


@pytest.mark.slow
def test_classical_check_of_few_images_is_optimistic_and_the_held_out_one_is_not():
    """60 data sets of 8 images by 6 cells, level 5 %; rates .021, .94 and .055 with 200 sets."""
    few = {
        name: study.p_values(f"few images, {name}", 60, 39)
        for name in ("held out", "classical", "residual model of training")
    }
    rate = {name: study.rates(found["chi_square"])["rejected"] for name, found in few.items()}
    assert rate["classical"] < 0.04
    assert rate["residual model of training"] > 0.8
    assert rate["held out"] < 0.1
    assert study.rates(few["classical"]["chi_square"])["ks_p"] < 0.01
