"""Rejection rates over many data sets, on exact posteriors: the studies of benchmarks/calibration.

Bands are 99.99 % intervals of a correct check where nothing else is said; critical Kolmogorov
distances at the 1e-4 level: .156 (200 sets), .111 (400), .070 (1000).
"""

import csv
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from probinterp.criticism import FunctionDraw, LocalDoubleUseWarning, RegimeWarning, pop_pc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood

FOLDER = Path(__file__).parents[2] / "benchmarks" / "calibration"
sys.path.insert(0, str(FOLDER))
NAMES = ("study simulations regression factor_analysis poisson under_the_truth four_checks").split()
studies = SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
sys.path.remove(str(FOLDER))


def rates_of_regression(size, kind, n_sets, n_draws, seed=0):
    p = studies.regression.p_values(size, kind, n_sets, n_draws, seed)
    return studies.study.rates(p)


def test_plugin_check_of_regression_is_calibrated_on_400_data_sets():
    found = rates_of_regression((100, 100, 10), "plugin", 400, 119, seed=1)
    assert 0.0175 <= found["rej5"] <= 0.0975
    assert found["ks"] < 0.111
    assert rates_of_regression((100, 100, 10), "in-sample plugin", 400, 119)["rej5"] > 0.15


# at a fixed truth and this size the prior still pulls; (500, 500) and (400, 400) are strict
ASYMPTOTIC = ["Poisson (200, 200)", "Gaussian mixture (100, 100)"]
STRICT = [name for name in studies.under_the_truth.CASES if name not in ASYMPTOTIC]
ROWS = {
    "regression": 24,
    "factor_analysis": 25,
    "poisson": 36,
    "under_the_truth": 54,
    "four_checks": 96,
}


@pytest.mark.parametrize("name", ROWS)
def test_scripts_print_and_write_their_table(name, monkeypatch, tmp_path, capsys):
    out = tmp_path / "table.csv"
    options = ["--sets", "4", "--draws", "19", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [name, *options])
    getattr(studies, name).main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ROWS[name]
    assert all(0 <= float(row["rej5"]) <= 1 for row in rows)
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plugin", "predictive"])
@pytest.mark.parametrize("name", STRICT)
def test_calibrated_kinds_under_the_truth(name, kind):
    """2,000 or 4,000 data sets a model, standard error of the rate .0049 or .0034.

    Each of the p-values of the data-only statistics is judged like that of the likelihood.
    """
    for statistic, p in studies.under_the_truth.p_values(name, kind).items():
        found = studies.study.rates(p)
        assert found["sets"] >= 2000
        assert 0.04 <= found["rej5"] <= 0.06, (statistic, found)
        assert found["ks_p"] > 0.01, (statistic, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ASYMPTOTIC)
def test_rates_are_calibrated_where_p_is_uniform_only_as_the_data_grow(name):
    """2,000 or 4,000 data sets, standard error of the rate .0049 or .0034.

    Smallest Kolmogorov-Smirnov p .0033, of the zeros of Poisson counts.
    """
    for statistic, p in studies.under_the_truth.p_values(name, "plugin").items():
        found = studies.study.rates(p)
        assert 0.04 <= found["rej5"] <= 0.06, (statistic, found)
        assert found["ks_p"] > 0.001, (statistic, found)


@pytest.mark.parametrize("name", studies.under_the_truth.CASES)
def test_results_of_the_calibrated_kinds_say_that_they_are(name):
    draws, x_new = studies.under_the_truth.CASES[name].simulate(2, 19, 5)
    sets = studies.study.SideBySide(draws, 2)
    nll = studies.study.per_set(studies.study.negative_log_likelihood, 2)
    for kind in ("plugin", "predictive"):
        assert pop_pc(sets, x_new.flatten(0, 1), nll, kind=kind).calibrated


@pytest.mark.slow
def test_realised_kind_is_degenerate_at_a_large_regime_number_and_says_so():
    assert rates_of_regression((100, 100, 40), "realised", 1000, 599)["rej5"] > 0.98
    simulate = studies.simulations.regression(100, 100, 40)
    with pytest.warns(RegimeWarning, match="power-limited or degenerate"):
        result = studies.study.realised_alone(simulate, 300, seed=0)
    assert not result.calibrated
    assert result.regime > 5
    assert str(result.verdict()).startswith("No verdict")


@pytest.mark.parametrize("size", [(1000, 1000, 10), (400, 400, 4), (200, 200, 1)])
def test_regime_number_from_draws_agrees_with_the_dimension(size):
    """dim sqrt(2 n_new) / n_obs: .447, .283, .1; only the last is inside the regime."""
    n_obs, n_new, dim = size
    simulate = studies.simulations.regression(*size)
    expected = dim * (2 * n_new) ** 0.5 / n_obs
    if expected < 0.2:
        result = studies.study.realised_alone(simulate, 2000, seed=2)
        assert result.calibrated
    else:
        with pytest.warns(RegimeWarning, match="p is biased towards misfit"):
            result = studies.study.realised_alone(simulate, 2000, seed=2)
        assert not result.calibrated
    assert result.regime == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
def test_poisson_model_of_overdispersed_counts():
    """400 data sets; 99.99 % band of a correct check .0125 to .0975."""
    rows = {
        (data, check, statistic): studies.study.rates(p)["rej5"]
        for data in ("Pois(2)", "NB(2, size .01)")
        for check in ("pop_pc", "ppc")
        for statistic, p in studies.poisson.p_values(data, check, 400, 399, seed=0).items()
    }
    for statistic in studies.poisson.STATISTICS:
        assert 0.0125 <= rows["Pois(2)", "pop_pc", statistic] <= 0.0975
        assert rows["NB(2, size .01)", "pop_pc", statistic] >= 0.85
    assert rows["Pois(2)", "ppc", "mean"] < 0.02
    assert rows["NB(2, size .01)", "ppc", "mean"] < 0.02


@pytest.mark.slow
def test_prior_mode_is_calibrated_on_1000_factor_analyses():
    for p in studies.factor_analysis.check_new_rows("prior", 1.0, 20, 1000, 199, seed=0).values():
        found = studies.study.rates(p)
        assert 0.035 <= found["rej5"] <= 0.065
        assert found["ks"] < 0.070


@pytest.mark.slow
def test_posterior_mode_is_blind_to_a_wrong_prior_of_the_factors():
    rate = {}
    for local in ("prior", "posterior"):
        p = studies.factor_analysis.check_new_rows(local, 1.3, 20, 200, 199, seed=0)["NLL"]
        rate[local] = studies.study.rates(p)["rej5"]
    assert rate["prior"] > 0.8
    assert rate["posterior"] < 0.25
    simulate = studies.simulations.factor_rows(50, 20, 3, local="posterior")
    draws, x = simulate(1, 19, 0)
    alone = studies.study.SideBySide(draws, 1)
    with pytest.warns(LocalDoubleUseWarning):
        result = pop_pc(alone, x[0], mean_negative_log_likelihood)
    assert result.local == "posterior"
    assert not result.calibrated


@pytest.mark.slow
def test_masked_cells_of_factor_analysis():
    rate = {
        kind: studies.study.rates(studies.factor_analysis.check_masked(800, kind, 150, 199, 0))
        for kind in ("plugin", "predictive", "realised")
    }
    assert rate["plugin"]["rej5"] <= 0.12
    assert rate["predictive"]["rej5"] <= 0.12
    assert rate["realised"]["rej5"] > 0.95
    simulate = studies.simulations.masked_pca(200, 20, 3, 800)
    with pytest.warns(RegimeWarning, match="power-limited or degenerate"):
        result = studies.study.realised_alone(simulate, 400, seed=0)
    assert 7 < result.regime < 16
    assert not result.calibrated


@pytest.mark.slow
def test_200_checks_one_at_a_time_are_calibrated_too():
    """The same through one call per data set: normal location, flat prior, n_obs = n_new = 20."""
    rejected = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        data = torch.randn(40, 3, generator=generator, dtype=torch.float64) + 5
        result = pop_pc(_Location(data[:20]), data[20:], mean_negative_log_likelihood, seed=seed)
        assert result.calibrated
        rejected += result.p_two_sided.item() <= 0.05
    assert 0.005 <= rejected / 200 <= 0.12


class _Location:
    """Exact posterior of the mean of normal data with sd 1, flat prior."""

    def __init__(self, x_obs):
        self.mean, self.n_obs, self.shape = x_obs.mean(0), len(x_obs), x_obs.shape
        self.reference = self.draw(self.mean)

    def draw(self, mean):
        law = torch.distributions.Normal(mean.expand(self.shape), 1.0)
        return FunctionDraw(law.sample, lambda x: torch.distributions.Independent(law, 1))

    def __iter__(self):
        for _ in range(199):
            yield self.draw(self.mean + torch.randn_like(self.mean) / self.n_obs**0.5)
