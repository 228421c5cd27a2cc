"""Spike-and-slab lasso: densities, identities and the implicit penalty."""

import math

import pytest
import torch
from pyro import distributions as dist
from scipy import integrate, optimize, special, stats

from probinterp.distributions import SpikeSlabLasso, column_cost

RATES = [(10.0, 1.0, 0.05), (500.0, 30.0, 0.2), (300.0, 0.5, 1e-6)]


def mixture(spike, slab, rate):
    values = (torch.tensor(v, dtype=torch.float64) for v in (spike, slab, rate))
    return SpikeSlabLasso(*values)


@pytest.mark.parametrize(("spike", "slab", "rate"), RATES)
def test_density_equals_a_mixture_of_scipy_laplaces(spike, slab, rate):
    w = torch.linspace(-3, 3, 101, dtype=torch.float64)
    expected = rate * stats.laplace(scale=1 / slab).pdf(w.numpy())
    expected = expected + (1 - rate) * stats.laplace(scale=1 / spike).pdf(w.numpy())
    density = mixture(spike, slab, rate).log_prob(w).exp().numpy()
    assert density == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(("spike", "slab", "rate"), RATES)
def test_density_integrates_to_one(spike, slab, rate):
    law = mixture(spike, slab, rate)
    half, _ = integrate.quad(
        lambda w: float(law.log_prob(torch.tensor(w, dtype=torch.float64)).exp()),
        0,
        60 / slab,
        limit=500,
        points=[1 / spike, 10 / spike, 40 / spike],
    )
    assert 2 * half == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("spike", "slab", "rate"), RATES)
def test_gradient_is_the_em_penalty(spike, slab, rate):
    w = torch.tensor([-2.0, -0.3, -0.011, 0.004, 0.2, 5.0], dtype=torch.float64, requires_grad=True)
    law = mixture(spike, slab, rate)
    (gradient,) = torch.autograd.grad(law.log_prob(w).sum(), w)
    expected = -law.expected_rate(w) * w.sign()
    assert (gradient - expected).abs().max() < 1e-10 * spike


def test_inclusion_threshold_of_the_specification():
    for spike, slab, rate, at in [(10.0, 1.0, 0.05, 0.583), (500.0, 30.0, 0.05, 0.0123)]:
        exact = math.log((1 - rate) / rate * spike / slab) / (spike - slab)
        assert exact == pytest.approx(at, abs=5e-4)
        w = torch.tensor(exact, dtype=torch.float64)
        assert float(mixture(spike, slab, rate).inclusion_probability(w)) == pytest.approx(0.5)


def test_log_odds_do_not_overflow():
    law = SpikeSlabLasso(torch.tensor(1e4), torch.tensor(1.0), torch.tensor(0.1))
    w = torch.tensor([0.0, 1e-3, 10.0])
    assert torch.isfinite(law.log_prob(w)).all()
    assert law.inclusion_probability(w)[2] == 1.0
    assert law.inclusion_probability(w)[0] == pytest.approx(1 / (1 + 9 * 1e4), rel=1e-5)


def test_closed_form_rate_maximises_the_expected_log_posterior():
    included = torch.tensor([0.9, 0.8, 0.01, 0.3], dtype=torch.float64)
    g = len(included)

    def negative(rate):
        data = included.sum() * math.log(rate) + (1 - included).sum() * math.log(1 - rate)
        return -float(data + stats.beta(1, g).logpdf(rate))

    found = optimize.minimize_scalar(
        negative, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-10}
    )
    assert float(included.sum() / (2 * g - 1)) == pytest.approx(found.x, abs=1e-6)


def test_moments_of_samples():
    law = SpikeSlabLasso(torch.tensor(20.0), torch.tensor(2.0), torch.tensor(0.3))
    torch.manual_seed(0)
    draws = law.sample(torch.Size([200_000]))
    assert float(law.variance) == pytest.approx(2 * 0.3 / 4 + 2 * 0.7 / 400)
    assert float(draws.var()) == pytest.approx(float(law.variance), rel=0.03)
    assert abs(float(draws.mean())) < 5 * math.sqrt(float(law.variance) / 200_000)


@pytest.mark.parametrize("size", [0, 1, 2, 10, 558])
def test_column_cost_is_the_beta_function_ratio(size):
    g = 558
    expected = special.betaln(1, g) - special.betaln(1 + size, g + g - size)
    assert column_cost(size, g) == pytest.approx(expected, rel=1e-10)


def test_column_cost_of_empty_and_first_feature():
    assert column_cost(0, 558) == pytest.approx(math.log(2))
    steps = [column_cost(s, 558) - column_cost(s - 1, 558) for s in (1, 10)]
    assert steps == pytest.approx([7.02, 4.71], abs=0.01)
    with pytest.raises(ValueError, match="between 0 and n_features = 5, got 6"):
        column_cost(6, 5)


def test_divergence_of_full_covariance_equals_the_general_formula():
    torch.manual_seed(0)
    lower = torch.randn(5, 3, 3, dtype=torch.float64).tril()
    lower = lower + torch.diag_embed(1 + lower.diagonal(dim1=-2, dim2=-1).abs())
    loc, mean = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    p = torch.distributions.MultivariateNormal(loc, scale_tril=lower)
    independent = dist.Normal(mean, scale).to_event(1)
    dense = torch.distributions.MultivariateNormal(mean, torch.diag(scale**2))
    torch.testing.assert_close(
        torch.distributions.kl_divergence(p, independent),
        torch.distributions.kl_divergence(p, dense),
    )
