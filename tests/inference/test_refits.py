"""Refits on simulated data: what is simulated, what is fitted, and the same bits everywhere."""

import pickle

import pytest
import torch
from joblib import Parallel, delayed

from probinterp import simulate
from probinterp.criticism import discrepancies, pop_pc
from probinterp.inference import ArrayData, cosine, fit, model_refits, predictive_draws
from probinterp.inference.refits import fresh_copy
from probinterp.likelihoods import MultinomialLikelihood, NegativeBinomialLikelihood
from probinterp.models import VAE, Batch, FactorAnalysis, SparseVAE


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-2, fused=True)


@pytest.fixture(scope="module")
def fitted():
    truth = simulate.factor_analysis(300, 8, 2, seed=1)
    torch.manual_seed(0)
    model, data = FactorAnalysis(8, 2), ArrayData(truth.x)
    options = {"max_epochs": 400, "batch_size": 300, "optimizer": adam, "schedule": cosine}
    fit(model, data, progress=False, device="cpu", **options)
    return model, data, options


def total_covariance(model):
    with torch.no_grad():
        return model.loadings @ model.loadings.mT + model.likelihood.scale.square().diag()


def test_simulated_data_have_the_moments_of_the_fitted_model(fitted):
    model, data, options = fitted
    refits = model_refits(model, data, Batch(torch.zeros(2000, 8)), **options)
    x_obs, x_new = refits.simulate(5)
    assert x_obs.shape == (300, 8)
    assert x_new.shape == (2000, 8)
    expected = total_covariance(model)
    assert (x_new.T.cov() - expected).abs().max() < 0.15 * expected.abs().max()
    assert not torch.equal(x_obs, x_new[:300])
    assert not torch.equal(x_obs, data.x)
    again, other = refits.simulate(5), refits.simulate(6)
    assert torch.equal(again[0], x_obs)
    assert not torch.equal(other[0], x_obs)


@pytest.mark.parametrize("warm", [False, True])
def test_a_refit_maximises_the_likelihood_of_the_simulated_data(fitted, warm):
    model, data, options = fitted
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = options | ({"max_epochs": 100} if warm else {})
    refits = model_refits(model, data, Batch(torch.zeros(30, 8)), warm_start=warm, **options)
    x_obs, x_new = refits.simulate(1)
    draws = refits.fit(x_obs, x_new, 2)
    again = draws.units.model
    with torch.no_grad():
        gain = again.log_marginal_likelihood(x_obs) - model.log_marginal_likelihood(x_obs)
    # Wilks: twice the gain is about chi-square with 31 degrees of freedom (8 (2 + 2) - 1)
    assert 10 < 2 * gain.sum().item() < 60
    assert next(iter(draws)).replicate().shape == (30, 8)
    assert len(draws) == 100
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_refits_do_not_see_the_values_of_the_new_data(fitted):
    model, data, options = fitted
    refits = model_refits(model, data, Batch(torch.zeros(30, 8)), **(options | {"max_epochs": 3}))
    x_obs, x_new = refits.simulate(1)
    one, two = (refits.fit(x_obs, x, 2) for x in (x_new, 7 - x_new))
    assert torch.equal(next(iter(one)).replicate(), next(iter(two)).replicate())


def _refit(refits, seed):
    x_obs, x_new = refits.simulate(seed)
    draws = refits.fit(x_obs, x_new, seed)
    return torch.cat([x_obs.flatten(), x_new.flatten(), next(iter(draws)).replicate().flatten()])


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_same_bits_on_every_backend(fitted, backend):
    model, data, options = fitted
    refits = model_refits(model, data, Batch(torch.zeros(9, 8)), **(options | {"max_epochs": 4}))
    seeds = (3, 2**62 + 3)
    expected = [_refit(refits, seed) for seed in seeds]
    with Parallel(n_jobs=2, backend=backend) as parallel:
        found = parallel(delayed(_refit)(refits, seed) for seed in seeds)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


COUNT_MODELS = {
    "SparseVAE": lambda: SparseVAE(
        6, 3, n_hidden=8, prune_after=0.5, likelihood=NegativeBinomialLikelihood(6)
    ),
    "VAE": lambda: VAE(6, 2, n_hidden=8, likelihood=MultinomialLikelihood(6)),
}


@pytest.mark.parametrize("name", COUNT_MODELS)
@pytest.mark.parametrize("warm", [False, True])
def test_refits_keep_the_covariates(name, warm):
    torch.manual_seed(0)
    model = COUNT_MODELS[name]()
    counts, size_factor = torch.poisson(torch.full((40, 6), 3.0)), 0.5 + torch.rand(40)
    data = ArrayData(counts, size_factor)
    fit(model, data, max_epochs=4, batch_size=16, progress=False, device="cpu")
    new = Batch(counts[:7] + 1, size_factor=3 * size_factor[:7])
    refits = pickle.loads(
        pickle.dumps(model_refits(model, data, new, warm_start=warm, max_epochs=2, batch_size=16))
    )
    x_obs, x_new = refits.simulate(0)
    if name == "VAE":  # multinomial: totals are given
        assert torch.equal(x_obs.sum(1), counts.sum(1))
        assert torch.equal(x_new.sum(1), new.x.sum(1))
    draws = refits.fit(x_obs, x_new, 1)
    assert torch.equal(draws.units.batch.size_factor, new.size_factor)
    assert draws.units.model.initialized
    replicate = next(iter(draws)).replicate()
    assert replicate.shape == (7, 6)
    assert torch.equal(replicate, replicate.round())


def test_fresh_copies_have_the_configuration_but_their_own_weights(fitted):
    model = fitted[0]
    one, two = fresh_copy(model, 1), fresh_copy(model, 2)
    assert one.configuration == model.configuration
    assert not one.initialized
    assert not torch.equal(one.loadings, two.loadings)
    assert torch.equal(one.loadings, fresh_copy(model, 1).loadings)


@pytest.mark.parametrize("option", ["seed", "checkpoint", "early_stopping"])
def test_options_of_a_single_fit_are_refused(fitted, option):
    with pytest.raises(ValueError, match=f"{option} belongs to a single fit"):
        model_refits(fitted[0], fitted[1], Batch(torch.zeros(2, 8)), **{option: 1})


@pytest.mark.slow
def test_warm_refits_calibrate_the_check_of_a_point_estimate():
    """Eight correct models, 79 parameters, n_obs = n_new = 200: z is biased by r / sqrt(G)."""
    options = {"batch_size": 200, "optimizer": adam, "schedule": cosine}
    before, after = [], []
    for seed in range(8):
        truth = simulate.factor_analysis(400, 20, 2, seed=seed)
        torch.manual_seed(seed)
        model, data, new = FactorAnalysis(20, 2), ArrayData(truth.x[:200]), Batch(truth.x[200:])
        fit(model, data, max_epochs=300, progress=False, device="cpu", seed=seed, **options)
        refits = model_refits(
            model, data, new, scoring="marginal", warm_start=True, max_epochs=40, **options
        )
        draws = predictive_draws(model, new, 100, scoring="marginal", seed=seed)
        result = pop_pc(
            draws,
            new.x,
            discrepancies.mean_negative_log_likelihood,
            n_obs=200,
            seed=seed,
            calibrate_refits=8,
            refits=refits,
        )
        assert result.calibrated
        before.append(result.z.item())
        spread = result.refitted.std(0) * (1 + 1 / 8) ** 0.5
        after.append(((result.excess - result.refitted.mean(0)) / spread).item())
    before, after = torch.tensor(before), torch.tensor(after)
    bias = 79 / 200 * (2 * 200 / 20) ** 0.5  # 1.77, spread sqrt(2): standard error .5
    assert before.mean().item() == pytest.approx(bias, abs=1.5)
    assert abs(after.mean().item()) < 1.4  # a t variable with 7 degrees of freedom: .42
