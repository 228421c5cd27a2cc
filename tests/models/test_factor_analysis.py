"""Factor analysis against its closed forms and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis

from probinterp import simulate
from probinterp.inference import (
    ArrayData,
    cosine,
    fit,
    full_objective,
    log_predictive_density,
    posterior,
    predictive_draws,
)
from probinterp.models import Batch, FactorAnalysis


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-2, fused=True)


@pytest.fixture(scope="module")
def fitted():
    truth = simulate.factor_analysis(400, 10, 3, seed=1)
    torch.manual_seed(0)
    model = FactorAnalysis(10, 3)
    data = ArrayData(truth.x)
    fit(
        model,
        data,
        max_epochs=4000,
        batch_size=400,
        optimizer=adam,
        schedule=cosine,
        progress=False,
    )
    return model, truth.x


def test_posterior_and_evidence_equal_textbook_formulas():
    torch.manual_seed(3)
    model = FactorAnalysis(5, 2).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        model.intercept.normal_()
        model.likelihood.log_scale.normal_()
    w = model.loadings.detach().numpy()
    noise = np.diag(model.likelihood.scale.detach().numpy() ** 2)
    center = model.intercept.detach().numpy()
    total = w @ w.T + noise
    expected = stats.multivariate_normal(center, total).logpdf(x.numpy())
    assert model.log_marginal_likelihood(x).detach().numpy() == pytest.approx(expected, rel=1e-10)
    gain = w.T @ np.linalg.inv(total)  # conditioning the joint normal of (z, x)
    exact = model.exact_posterior(x)
    assert exact.mean.detach().numpy() == pytest.approx((x.numpy() - center) @ gain.T, abs=1e-10)
    assert exact.covariance_matrix[0].detach().numpy() == pytest.approx(
        np.eye(2) - gain @ w, abs=1e-10
    )


def test_elbo_reaches_the_exact_marginal_likelihood(fitted):
    model, x = fitted
    exact = model.log_marginal_likelihood(x).mean().item()
    bound = full_objective(model, ArrayData(x), n_samples=20)
    assert abs(bound - exact) < 0.005 * abs(exact)


def test_posterior_means_equal_the_closed_form(fitted):
    model, x = fitted
    guided, exact = posterior(model, Batch(x))["z"], model.exact_posterior(x)
    assert (guided.mean - exact.mean).abs().max() < 1e-2
    assert (guided.covariance_matrix[0] - exact.covariance_matrix[0]).abs().max() < 1e-2


def test_maximum_likelihood_equals_scikit_learn(fitted):
    model, x = fitted
    other = SklearnFactorAnalysis(3, tol=1e-6, max_iter=5000).fit(x.numpy())
    ours = model.log_marginal_likelihood(x).mean().item()
    assert ours == pytest.approx(other.score(x.numpy()), abs=0.01)
    covariance = (model.loadings @ model.loadings.mT).detach().numpy()
    theirs = other.components_.T @ other.components_
    assert np.abs(covariance - theirs).max() < 0.05 * np.abs(theirs).max()


def test_importance_sampling_equals_the_exact_evidence(fitted):
    model, x = fitted
    estimate = log_predictive_density(model, Batch(x[:50]), n_samples=50, seed=2)
    exact = model.log_marginal_likelihood(x[:50])
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)


def test_replicates_have_the_marginal_moments(fitted):
    model, x = fitted
    batch = Batch(torch.zeros(4000, 10))
    draw = next(iter(predictive_draws(model, batch, 1, seed=5)))
    replicate = draw.replicate()
    total = model.loadings @ model.loadings.mT + model.likelihood.scale.square().diag()
    assert (replicate.T.cov() - total).abs().max() < 0.1 * total.abs().max()
    assert torch.equal(replicate, draw.replicate())
    likelihood = draw.likelihood(x)
    expected = model.exact_posterior(x).mean @ model.loadings.mT + model.intercept
    torch.testing.assert_close(likelihood.mean, expected, atol=0.05, rtol=0)


def test_posterior_mode_shares_the_factors_of_the_batch(fitted):
    model, x = fitted
    draws = predictive_draws(model, Batch(x), 200, local="posterior", seed=0)
    average = sum(draw.replicate() for draw in draws) / 200
    reconstruction = model.exact_posterior(x).mean @ model.loadings.mT + model.intercept
    assert (average - reconstruction).abs().mean() < 0.1
    prior = predictive_draws(model, Batch(x), 200, local="prior", seed=0)
    assert (sum(d.replicate() for d in prior) / 200 - reconstruction).abs().mean() > 0.5
