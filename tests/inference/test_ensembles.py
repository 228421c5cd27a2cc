"""Bootstrap ensembles: resampling, turns, spread."""

import pytest
import torch
from joblib import parallel_config

from probinterp import simulate
from probinterp.inference import ArrayData, bootstrap_draws, cosine, fit
from probinterp.inference.ensembles import ResampledData
from probinterp.models import Batch, FactorAnalysis


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-2, fused=True)


OPTIONS = {"max_epochs": 60, "batch_size": 200, "optimizer": adam, "schedule": cosine}


@pytest.fixture(scope="module")
def fitted():
    truth = simulate.factor_analysis(200, 5, 1, seed=1)
    torch.manual_seed(0)
    model, data = FactorAnalysis(5, 1), ArrayData(truth.x)
    fit(model, data, progress=False, device="cpu", **(OPTIONS | {"max_epochs": 300}))
    return model, data


def test_members_spread_as_the_mean_does(fitted):
    model, data = fitted
    draws = bootstrap_draws(
        model, data, Batch(torch.zeros(9, 5)), 30, 45, warm_start=True, seed=3, **OPTIONS
    )
    intercepts = torch.stack([m.units.model.intercept.detach() for m in draws.members])
    expected = data.x.std(0) / 200**0.5
    assert ((intercepts.std(0) / expected) - 1).abs().max() < 0.5  # 4 s.e. of 30 fits
    assert draws.reference.units.model is model
    assert (draws.point_estimate, draws.n_obs, draws.local) == (False, 200, "prior")
    assert draws.globals_from == "30 fits to bootstrap samples of the 200 units"
    used = [draw.units.model for draw in draws]
    assert len(used) == len(draws) == 45
    assert all(used[s] is draws.members[s % 30].units.model for s in range(45))


def test_fresh_members_fit_as_well_as_warm_ones(fitted):
    model, data = fitted
    options = OPTIONS | {"max_epochs": 300}
    draws = bootstrap_draws(model, data, Batch(torch.zeros(9, 5)), 2, 2, seed=3, **options)
    for member in draws.members:
        with torch.no_grad():
            gap = model.log_marginal_likelihood(
                data.x
            ) - member.units.model.log_marginal_likelihood(data.x)
        assert 0 < gap.sum() < 30  # about half a chi-square with 14 degrees of freedom


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_same_bits_on_every_backend(fitted, backend):
    model, data = fitted
    options = OPTIONS | {"max_epochs": 3}

    def replicates(n_jobs):
        draws = bootstrap_draws(
            model, data, Batch(torch.zeros(4, 5)), 3, 4, seed=5, n_jobs=n_jobs, **options
        )
        return torch.stack([draw.replicate() for draw in draws])

    expected = replicates(None)
    with parallel_config(backend=backend):
        assert torch.equal(replicates(2), expected)
    assert not torch.equal(expected[0], expected[3])  # one fit, two replicates


def test_resampled_rows_are_those_of_the_data():
    data = ArrayData(torch.arange(8.0).view(4, 2), size_factor=torch.arange(1.0, 5.0))
    resampled = ResampledData(data, torch.tensor([3, 3, 0]))
    assert len(resampled) == 3
    assert resampled.batch().x.tolist() == [[6, 7], [6, 7], [0, 1]]
    assert resampled.batch(torch.tensor([2, 0])).size_factor.tolist() == [1, 4]


def test_mistakes_are_named(fitted):
    model, data = fitted
    for options, text in (
        ({"n_fits": 0, "n_draws": 3}, "n_fits must be a positive integer, got 0"),
        ({"n_fits": 2, "n_draws": 0}, "n_draws must be a positive integer, got 0"),
        ({"n_fits": 2, "n_draws": 3, "checkpoint": "a"}, "checkpoint belongs to a single fit"),
    ):
        with pytest.raises(ValueError, match=text):
            bootstrap_draws(model, data, data.batch(), **options)
