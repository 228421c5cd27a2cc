"""Draws from the predictive: where local latents come from and what scores them."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from scipy import stats
from torch import nn

from probinterp.criticism import (
    LocalDoubleUseWarning,
    PointEstimateWarning,
    discrepancies,
    log_score,
    pop_pc,
)
from probinterp.inference import log_predictive_density, predictive_draws
from probinterp.inference.marginal import IntegratedLikelihood
from probinterp.models import VAE, Batch, FactorAnalysis, ProbabilisticModel
from probinterp.models.base import OBS_SITE, observations


def linear_model(n_features=5, n_factors=2, seed=0):
    torch.manual_seed(seed)
    model = FactorAnalysis(n_features, n_factors).double()
    with torch.no_grad():
        model.loadings.normal_()
        model.intercept.normal_()
        model.likelihood.log_scale.normal_(-0.5, 0.3)
        posterior = model.exact_posterior(torch.zeros(1, n_features).double())
        model.encoder.copy_(model._posterior_terms()[1])
        model.encoder_bias.copy_(-model.encoder @ model.intercept)
        model.raw_scale.copy_(posterior.scale_tril[0])
    return model.eval()


def simulated(model, n, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, model.loadings.shape[1], generator=generator, dtype=torch.float64)
    eps = torch.randn(n, len(model.loadings), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return z, model.decode(z) + eps * model.likelihood.scale


class RandomMean(ProbabilisticModel):
    """x = w + z + noise with a global site w whose posterior is N(3, 0.5^2); z is local."""

    def __init__(self):
        super().__init__()
        self.center = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def model(self, batch, n_total=None):
        w = pyro.sample("w", dist.Normal(0.0 * self.center, 10.0))
        with observations(batch, n_total):
            z = pyro.sample("z", dist.Normal(0 * batch.x[:, :1], 1.0).to_event(1))
            pyro.sample(OBS_SITE, dist.Normal(w + z, 1.0).to_event(1), obs=batch.x)

    def guide(self, batch, n_total=None):
        w = pyro.sample("w", dist.Normal(self.center, 0.5))
        with observations(batch, n_total):
            z = (batch.x[:, :1] - w) / 2
            pyro.sample("z", dist.Normal(z, math.sqrt(0.5)).to_event(1))


def test_marginal_scoring_of_a_linear_model_is_exact(device):
    model = linear_model().to(device)
    x = simulated(linear_model(), 30, 1)[1].to(device)
    law = predictive_draws(model, Batch(x), 1, scoring="marginal").reference.likelihood(x)
    w = model.loadings.detach().cpu().numpy()
    total = w @ w.T + np.diag(model.likelihood.scale.detach().cpu().numpy() ** 2)
    center = model.intercept.detach().cpu().numpy()
    expected = stats.multivariate_normal(center, total).logpdf(x.cpu().numpy())
    assert law.log_prob(x).detach().cpu().numpy() == pytest.approx(expected, rel=1e-10)
    assert law.mean.shape == law.variance.shape == x.shape
    assert law.variance[7].detach().cpu().numpy() == pytest.approx(np.diag(total), rel=1e-12)


def test_sampled_integral_agrees_with_the_exact_one():
    model = linear_model()
    _, x = simulated(model, 20, 2)
    exact = model.exact_marginal(Batch(x))
    sampled = IntegratedLikelihood(model, Batch(x), {}, 4000, seed=3)
    torch.testing.assert_close(sampled.log_prob(x), exact.log_prob(x), atol=1e-6, rtol=0)
    error = (exact.variance / 4000).sqrt()
    assert ((sampled.mean - exact.mean).abs() < 5 * error).all()
    torch.testing.assert_close(sampled.variance, exact.variance, rtol=0.15, atol=0)
    assert torch.equal(sampled.log_prob(x), sampled.log_prob(x))


def test_sampled_integral_over_given_latents_agrees_with_the_exact_one():
    model = linear_model()
    _, x = simulated(model, 20, 2)
    over = model.exact_locals(Batch(x + 0.3))
    exact = model.exact_marginal(Batch(x), over)
    sampled = IntegratedLikelihood(model, Batch(x), {}, 6000, seed=3, locals_=over)
    torch.testing.assert_close(sampled.log_prob(x), exact.log_prob(x), atol=0.15, rtol=0)
    torch.testing.assert_close(sampled.mean, exact.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(sampled.variance, exact.variance, rtol=0.1, atol=0)


def test_marginal_scoring_of_a_network_is_the_importance_weighted_density():
    torch.manual_seed(0)
    model = VAE(6, 2, n_hidden=8).eval()
    x = torch.randn(10, 6)
    draws = predictive_draws(model, Batch(x), 1, scoring="marginal", n_samples=7, seed=5)
    law = draws.reference.likelihood(x)
    assert law.n_samples == 7
    expected = log_predictive_density(model, Batch(x), n_samples=7, seed=5)
    assert torch.equal(law.log_prob(x), expected)


def test_observed_mode_scores_with_the_posterior_mean_given_the_observed_part():
    model = linear_model()
    z, seen = simulated(model, 40, 3)
    other = model.decode(z).detach() + torch.randn_like(seen)
    draws = predictive_draws(model, Batch(other), 400, local="observed", observed=Batch(seen))
    assert draws.local == "observed"
    expected = model.decode(model.exact_posterior(seen).mean)
    for x in (other, 100 * other):  # the compared data play no part
        torch.testing.assert_close(draws.reference.likelihood(x).mean, expected)
    replicates = torch.stack([draw.replicate() for draw in draws])
    law = model.exact_marginal(Batch(other), model.exact_locals(Batch(seen)))
    assert ((replicates.mean(0) - expected).abs() < 5 * (law.variance / 400).sqrt()).all()
    torch.testing.assert_close(replicates.var(0), law.variance.detach(), rtol=0.5, atol=0)


def test_observed_mode_with_marginal_scoring_is_the_conditional_distribution():
    model = linear_model()
    z, seen = simulated(model, 6, 4)
    other = model.decode(z).detach() + torch.randn_like(seen)
    law = predictive_draws(
        model, Batch(other), 1, local="observed", observed=Batch(seen), scoring="marginal"
    ).reference.likelihood(other)
    w = model.loadings.detach().numpy()
    noise = np.diag(model.likelihood.scale.detach().numpy() ** 2)
    center = model.intercept.detach().numpy()
    gain = w @ w.T @ np.linalg.inv(w @ w.T + noise)  # condition the joint of (other, seen)
    covariance = w @ w.T + noise - gain @ w @ w.T
    for i in range(6):
        mean = center + gain @ (seen[i].numpy() - center)
        expected = stats.multivariate_normal(mean, covariance).logpdf(other[i].numpy())
        assert law.log_prob(other)[i].item() == pytest.approx(expected, rel=1e-9)


def test_draws_of_random_globals_replicate_and_score_with_their_own():
    batch = Batch(torch.zeros(4000, 1, dtype=torch.float64))
    draws = predictive_draws(RandomMean(), batch, 50, seed=1)
    assert not draws.point_estimate
    values = []
    for draw in draws:
        w = draw.unknowns["w"]
        values.append(w)
        assert abs(draw.replicate().mean() - w) < 5 * math.sqrt(2 / 4000)
        # z is inferred as (x - w) / 2 under the draw's own w
        assert draw.likelihood(batch.x).mean[0].item() == pytest.approx(w.item() / 2, rel=1e-12)
    assert torch.stack(values).std().item() == pytest.approx(0.5, rel=0.35)
    assert draws.reference.unknowns["w"].item() == 3.0
    marginal = predictive_draws(RandomMean(), batch, 1, scoring="marginal", n_samples=4)
    expected = stats.norm(3.0, math.sqrt(2)).logpdf(0.0)  # the proposal is the posterior: exact
    found = marginal.reference.likelihood(batch.x).log_prob(batch.x)
    assert found[0].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("local", ["prior", "posterior", "observed"])
@pytest.mark.parametrize("scoring", ["inferred", "marginal"])
def test_same_seed_same_draws_and_the_callers_random_state_is_kept(local, scoring):
    torch.manual_seed(0)
    model = VAE(6, 2, n_hidden=8).eval()
    x = torch.randn(10, 6)
    observed = Batch(torch.randn(10, 6)) if local == "observed" else None
    before = torch.get_rng_state()

    def run(seed):
        draws = predictive_draws(
            model, Batch(x), 3, local=local, observed=observed, scoring=scoring, seed=seed
        )
        return torch.stack(
            [torch.cat([d.replicate().flatten(), d.likelihood(x).log_prob(x)]) for d in draws]
        )

    first = run(7)
    assert torch.equal(first, run(7))
    assert not torch.equal(first, run(8))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.get_rng_state())


def test_importance_weights_use_the_globals_of_the_draw():
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    for w in (-1.0, 4.0):
        unknowns = {"w": torch.tensor(w, dtype=torch.float64)}
        law = IntegratedLikelihood(RandomMean(), Batch(x), unknowns, 3, seed=0)
        expected = stats.norm(w, math.sqrt(2)).logpdf(x.numpy()).ravel()
        assert law.log_prob(x).numpy() == pytest.approx(expected, rel=1e-10)


BATCH = Batch(torch.zeros(4, 6))
MISTAKES = {
    "no draws": ({"n_draws": 0}, "n_draws must be a positive integer, got 0."),
    "no samples": ({"n_samples": 0.5}, "n_samples must be a positive integer, got 0.5."),
    "unknown mode": (
        {"local": "both"},
        'local must be "prior", "posterior", "observed" or "covariates", got \'both\'.',
    ),
    "unknown scoring": (
        {"scoring": "exact"},
        'scoring must be "inferred" or "marginal", got \'exact\'.',
    ),
    "nothing observed": ({"local": "observed"}, "got local='observed' and observed=None."),
    "observed unasked": ({"observed": BATCH}, "got local='prior' and observed=a batch."),
    "other units": (
        {"local": "observed", "observed": Batch(torch.zeros(3, 6))},
        "observed must have the 4 units of the batch, got 3.",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    options, text = MISTAKES[case]
    with pytest.raises(ValueError, match=text.replace("(", r"\(").replace(".", r"\.")):
        predictive_draws(VAE(6, 2, n_hidden=8), BATCH, **({"n_draws": 2} | options))


def test_data_with_other_features_are_refused():
    draw = predictive_draws(VAE(6, 2, n_hidden=8), BATCH, 1).reference
    with pytest.raises(ValueError, match=r"x must have 6 features, got shape \(4, 5\)"):
        draw.likelihood(torch.zeros(4, 5))


def test_a_list_of_draws_keeps_the_reservations_of_the_collection():
    model = linear_model()
    x = simulated(model, 30, 1)[1]
    draws = list(predictive_draws(model, Batch(x), 5, local="posterior"))
    assert (draws[0].local, draws[0].scoring, draws[0].point_estimate) == (
        "posterior",
        "inferred",
        True,
    )
    with pytest.warns(LocalDoubleUseWarning), pytest.warns(PointEstimateWarning):
        result = pop_pc(draws, x, discrepancies.mean)
    assert (result.local, result.calibrated) == ("posterior", False)
    with pytest.raises(ValueError, match="no predictive density"):
        log_score(draws, x)


def test_the_compared_data_are_no_observed_part():
    model = linear_model()
    batch = Batch(simulated(model, 30, 1)[1])
    for same in (batch, Batch(batch.x.clone()), Batch(batch.x.to_sparse())):
        with pytest.raises(ValueError, match="observed holds the very data of the batch"):
            predictive_draws(model, batch, 5, local="observed", observed=same)
    masked = batch._replace(mask=torch.rand(batch.x.shape) < 0.8)
    assert len(predictive_draws(model, batch, 5, local="observed", observed=masked)) == 5
