"""Laplace approximation against known information matrices."""

import math
import re

import pytest
import torch

from probinterp import simulate
from probinterp.inference import ArrayData, fit, laplace, laplace_draws
from probinterp.inference.scores import row_scores
from probinterp.likelihoods import NegativeBinomialLikelihood
from probinterp.models import VAE, Batch, FactorAnalysis, SparseVAE


def linear_model(n_features=6, n_factors=2):
    torch.manual_seed(1)
    model = FactorAnalysis(n_features, n_factors).double().eval()
    with torch.no_grad():
        model.loadings.normal_()
        model.likelihood.log_scale.normal_(-0.3, 0.2)
        covariance, gain = model._posterior_terms()
        model.encoder.copy_(gain)
        model.raw_scale.copy_(torch.linalg.cholesky(covariance))
    return model


def total_of(model):
    return model.loadings @ model.loadings.mT + model.likelihood.scale.square().diag()


def jacobian_of_total(model):
    """Derivatives of the covariance of the features by the loadings and log scales, (G G, P)."""

    def total(w, log_scale):
        return (w @ w.mT + (2 * log_scale).exp().diag()).flatten()

    arguments = (model.loadings.detach(), model.likelihood.log_scale.detach())
    parts = torch.autograd.functional.jacobian(total, arguments)
    return torch.cat([part.flatten(1) for part in parts], 1)


def test_information_of_a_linear_model_equals_the_closed_form():
    """Fisher information of a normal law: half the trace form of the covariance."""
    model = linear_model()
    n = 20_000
    found = laplace(model, ArrayData(torch.zeros(n, 6, dtype=torch.float64)), seed=1)
    assert found.names == ("loadings", "intercept", "likelihood.log_scale")
    assert found.n_parameters == 6 * 2 + 6 + 6 - 1  # one rotation of two factors
    covariance = n * found.root @ found.root.mT
    with torch.no_grad():
        inverse = torch.linalg.inv(total_of(model))
        jacobian = jacobian_of_total(model)
        information = 0.5 * jacobian.mT @ torch.kron(inverse, inverse) @ jacobian
        expected = torch.linalg.pinv(information, rtol=1e-8, hermitian=True)
        of_mean = covariance[12:18, 12:18]
        torch.testing.assert_close(of_mean, total_of(model).detach(), atol=0.1, rtol=0.1)
    rest = [*range(12), *range(18, 24)]
    of_rest = covariance[rest][:, rest]
    assert (of_rest - expected).norm() < 0.05 * expected.norm()


def test_sampled_scores_agree_with_the_exact_ones(monkeypatch):
    model = linear_model()
    x = 2 * torch.randn(12, 6, dtype=torch.float64)
    parameters = [model.loadings, model.intercept, model.likelihood.log_scale]
    exact = row_scores(model, Batch(x), parameters, 1, 0)
    monkeypatch.setattr(FactorAnalysis, "exact_marginal", lambda *_: None)
    sampled = row_scores(model, Batch(x), parameters, 4000, 0)
    assert (sampled - exact).abs().max() < 0.1 * exact.abs().max()


def test_draws_spread_as_the_estimates_of_repeated_fits_do():
    """Spread of the log determinant and of the covariance over simulated estimates."""
    model = linear_model()
    n, total = 400, total_of(linear_model()).detach()
    data = ArrayData(torch.zeros(n, 6, dtype=torch.float64))
    draws = laplace_draws(model, data, Batch(torch.zeros(3, 6, dtype=torch.float64)), 300, seed=2)
    assert not draws.point_estimate
    assert draws.n_obs == n
    assert draws.local == "prior"
    assert draws.globals_from == "Laplace approximation in 23 directions of 24 parameters"
    found = torch.stack([total_of(draw.units.model).detach().slogdet()[1] for draw in draws])
    # log det of a saturated sample covariance has variance 2 G / n; a factor model comes close
    assert found.std().item() == pytest.approx(math.sqrt(2 * 6 / n), rel=0.25)
    means = torch.stack([draw.units.model.intercept.detach() for draw in draws])
    torch.testing.assert_close(means.T.cov(), total / n, atol=0.4 * float(total.max()) / n, rtol=0)
    assert draws.reference.units.model is model


def test_same_seed_same_draws():
    model = linear_model()
    data, batch = ArrayData(torch.zeros(50, 6).double()), Batch(torch.zeros(4, 6).double())
    one, two = (list(laplace_draws(model, data, batch, 3, seed=4)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.replicate(), b.replicate())
    assert not torch.equal(one[0].replicate(), one[1].replicate())


COUNTS = {
    "SparseVAE": lambda: SparseVAE(5, 2, n_hidden=2, likelihood=NegativeBinomialLikelihood(5)),
    "VAE": lambda: VAE(5, 2, n_hidden=2, likelihood=NegativeBinomialLikelihood(5)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_networks_are_approximated_without_their_encoder(name):
    torch.manual_seed(0)
    model = COUNTS[name]()
    x = torch.poisson(torch.full((60, 5), 4.0))
    data = ArrayData(x, torch.ones(60))
    fit(model, data, max_epochs=20, batch_size=60, progress=False, device="cpu")
    found = laplace(model, data, n_samples=4)
    assert not any("encoder" in one for one in found.names)
    assert any("decoder" in one for one in found.names)
    assert ("sparse.weight" in found.names) == (name == "SparseVAE")
    assert 0 < found.n_parameters <= len(found.root)
    draws = laplace_draws(model, data, data.batch(torch.arange(7)), 2, n_samples=4)
    for draw in draws:
        assert draw.replicate().shape == (7, 5)
        assert draw.likelihood(x[:7]).log_prob(x[:7]).shape == (7,)


def test_mistakes_are_named():
    truth = simulate.factor_analysis(30, 20, 3, seed=1)
    data, model = ArrayData(truth.x), FactorAnalysis(20, 3)
    text = (
        "the model has 100 generative parameters, more than max_parameters = 99; "
        "use bootstrap_draws or model_refits."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        laplace(model, data, max_parameters=99)
    with pytest.raises(ValueError, match="n_draws must be a positive integer, got 0"):
        laplace_draws(model, data, data.batch(), 0)
