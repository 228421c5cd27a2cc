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

from probinterp.criticism import FunctionDraw, RegimeWarning, pop_pc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood

FOLDER = Path(__file__).parents[2] / "benchmarks" / "calibration"


@pytest.fixture(scope="module")
def studies():
    names = ("study", "regression", "factor_analysis", "poisson")
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(FOLDER))


def test_plugin_check_of_regression_is_calibrated_on_400_data_sets(studies):
    study = studies.regression.simulate(100, 100, 10, 400, seed=1)
    found = studies.study.rates(studies.regression.check(study, "plugin", 119, seed=1))
    assert 0.0175 <= found["rej5"] <= 0.0975
    assert found["ks"] < 0.111
    in_sample = studies.regression.check_in_sample(study, 119, seed=1)
    assert studies.study.rates(in_sample)["rej5"] > 0.15


@pytest.mark.parametrize("name", ["regression", "factor_analysis", "poisson"])
def test_scripts_print_and_write_their_table(studies, name, monkeypatch, tmp_path, capsys):
    out = tmp_path / "table.csv"
    options = ["--sets", "4", "--draws", "19", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [name, *options])
    getattr(studies, name).main()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == {"regression": 20, "factor_analysis": 25, "poisson": 24}[name]
    assert all(0 <= float(row["rej5"]) <= 1 for row in rows)
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("size", [(100, 100, 1), (100, 100, 40)])
@pytest.mark.parametrize("kind", ["plugin", "predictive"])
def test_calibrated_kinds_on_1000_regressions(studies, kind, size):
    study = studies.regression.simulate(*size, n_sets=1000, seed=0)
    found = studies.study.rates(studies.regression.check(study, kind, 599, seed=0))
    assert 0.035 <= found["rej5"] <= 0.065
    assert found["ks"] < 0.070


@pytest.mark.slow
def test_realised_kind_is_degenerate_at_a_large_regime_number(studies):
    study = studies.regression.simulate(100, 100, 40, 1000, seed=0)
    found = studies.study.rates(studies.regression.check(study, "realised", 599, seed=0))
    assert found["rej5"] > 0.98
    draws = studies.regression.posterior_draws(study, study.design_new, 300)
    alone = (studies.study.one_column(draw, 0) for draw in draws)
    with pytest.warns(RegimeWarning, match="power-limited or degenerate"):
        result = pop_pc(alone, study.x_new[:, :1], mean_negative_log_likelihood, kind="realised")
    assert result.verdict().startswith("No verdict")


@pytest.mark.parametrize("size", [(1000, 1000, 10), (400, 400, 4), (200, 200, 1)])
def test_regime_number_from_draws_agrees_with_the_dimension(studies, size):
    """dim sqrt(2 n_new) / n_obs: .447, .283, .1; only the last is inside the regime."""
    n_obs, n_new, dim = size
    study = studies.regression.simulate(n_obs, n_new, dim, 1, seed=2)
    draws = studies.regression.posterior_draws(study, study.design_new, 2000)
    alone = (studies.study.one_column(draw, 0) for draw in draws)
    expected = dim * (2 * n_new) ** 0.5 / n_obs
    check = {"kind": "realised", "n_obs": n_obs}
    if expected < 0.2:
        result = pop_pc(alone, study.x_new, mean_negative_log_likelihood, **check)
        assert result.calibrated
    else:
        with pytest.warns(RegimeWarning, match="p is biased towards misfit"):
            result = pop_pc(alone, study.x_new, mean_negative_log_likelihood, **check)
    assert result.regime == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
def test_poisson_model_of_overdispersed_counts(studies):
    rows = {
        (row["data"], row["check"], row["statistic"]): row["rej5"]
        for name in ("Pois(2)", "NB(2, size .01)")
        for row in studies.poisson.table(name, 200, 499, seed=0)
    }
    assert 0.005 <= rows["Pois(2)", "pop_pc", "mean"] <= 0.12
    assert rows["NB(2, size .01)", "pop_pc", "mean"] >= 0.75
    assert rows["Pois(2)", "ppc", "mean"] < 0.02
    assert rows["NB(2, size .01)", "ppc", "mean"] < 0.02
    assert rows["NB(2, size .01)", "pop_pc", "second moment"] > 0.95


@pytest.mark.slow
def test_prior_mode_is_calibrated_on_1000_factor_analyses(studies):
    result = studies.factor_analysis.check_new_rows("prior", 1.0, 20, 1000, 199, seed=0)
    for part in (slice(1000), slice(1000, None)):
        found = studies.study.rates(result, part)
        assert 0.035 <= found["rej5"] <= 0.065
        assert found["ks"] < 0.070


@pytest.mark.slow
def test_posterior_mode_is_blind_to_a_wrong_prior_of_the_factors(studies):
    rate = {}
    for local in ("prior", "posterior"):
        result = studies.factor_analysis.check_new_rows(local, 1.3, 20, 200, 199, seed=0)
        assert result.local == local
        assert result.calibrated == (local == "prior")
        rate[local] = studies.study.rates(result, slice(200))["rej5"]
    assert rate["prior"] > 0.8
    assert rate["posterior"] < 0.25


@pytest.mark.slow
def test_masked_cells_of_factor_analysis(studies):
    cells = studies.factor_analysis.simulate_masked(800, 150, seed=0)
    rate = {
        kind: studies.study.rates(studies.factor_analysis.check_masked(cells, kind, 199, seed=0))[
            "rej5"
        ]
        for kind in ("plugin", "standardised", "realised")
    }
    assert rate["plugin"] <= 0.12
    assert rate["standardised"] <= 0.12
    assert rate["realised"] > 0.95
    assert 7 < studies.factor_analysis.masked_regime(cells, 400) < 16


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
