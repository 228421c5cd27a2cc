import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence

from probinterp.spike_slab import PositiveNormal, SpikeSlab, gate_divergence

SLABS = [(1.0, 0.3), (-1.2, 0.2), (0.0, 1.0), (0.4, 0.9), (-3.0, 0.5), (-40.0, 1.0), (-55.0, 1.0)]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def positive(loc, scale):
    return PositiveNormal(double(loc), double(scale))


def integral(loc, scale, function):
    """Expectation under the truncated normal, by quadrature of its density."""
    a = loc / scale
    reach = scale * (12.0 if a > -3 else 45.0 / abs(a))
    low, high = max(0.0, loc - 12 * scale), max(0.0, loc) + reach

    def integrand(z):
        return function(z) * math.exp(stats.norm.logpdf(z, loc, scale) - stats.norm.logcdf(a))

    return integrate.quad(integrand, low, high, epsabs=0, epsrel=1e-11, limit=400)[0]


@pytest.mark.parametrize(("loc", "scale"), SLABS)
def test_moments_of_the_positive_normal_are_those_of_quadrature(loc, scale):
    q = positive(loc, scale)
    mean = integral(loc, scale, lambda z: z)
    assert integral(loc, scale, lambda z: 1.0) == pytest.approx(1.0, abs=1e-9)
    assert q.mean.item() == pytest.approx(mean, rel=1e-6)
    variance = integral(loc, scale, lambda z: (z - mean) ** 2)
    assert q.variance.item() == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize(("loc", "scale"), SLABS)
@pytest.mark.parametrize(("other", "spread"), [(0.0, 1.0), (0.7, 0.4)])
def test_divergence_of_positive_normals_is_that_of_quadrature(loc, scale, other, spread):
    q, p = positive(loc, scale), positive(other, spread)
    wanted = integral(
        loc, scale, lambda z: q.log_prob(double(z)).item() - p.log_prob(double(z)).item()
    )
    assert kl_divergence(q, p).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    entropy = -integral(loc, scale, lambda z: q.log_prob(double(z)).item())
    assert q.entropy().item() == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 0.3), (-1.2, 0.2), (-15.0, 1.0), (-45.0, 1.0)])
def test_draws_of_the_positive_normal_follow_it(loc, scale):
    torch.manual_seed(0)
    q = positive(loc, scale)
    draws = q.sample((200_000,))
    assert (draws > 0).all()
    error = q.variance.sqrt() / math.sqrt(len(draws))
    assert abs(draws.mean() - q.mean) < 4 * error
    assert draws.var().item() == pytest.approx(q.variance.item(), rel=0.02)


def test_draws_have_the_gradient_of_the_mean():
    torch.manual_seed(0)
    loc, scale = double(-0.5).requires_grad_(), double(0.8).requires_grad_()
    q = PositiveNormal(loc, scale)
    wanted = torch.autograd.grad(q.mean, (loc, scale))
    found = torch.autograd.grad(q.rsample((200_000,)).mean(), (loc, scale))
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0)


def test_gradients_of_the_moments_are_exact():
    loc = torch.tensor([-80.0, -60.0, -49.0, -20.0, -3.0, 0.0, 2.0, 20.0, 36.0, 40.0]).double()
    loc.requires_grad_()
    scale = torch.full_like(loc, 1.1).requires_grad_()

    def values(loc, scale):
        q = PositiveNormal(loc, scale)
        return q.mean, q.variance, q.entropy()

    assert torch.autograd.gradcheck(values, (loc, scale), eps=1e-4, atol=1e-6, rtol=1e-4)


def test_single_precision_keeps_its_digits_far_below_zero():
    a = torch.linspace(-100, 60, 1601).requires_grad_()
    single, exact = PositiveNormal(a, 1.0), PositiveNormal(a.detach().double(), 1.0)
    torch.testing.assert_close(single.mean.double(), exact.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(single.variance.double(), exact.variance, rtol=1e-6, atol=0)
    divergence = kl_divergence(single, PositiveNormal(torch.zeros(1601), 1.0))
    (divergence + single.mean + single.variance).sum().backward()
    assert a.grad.isfinite().all()
    assert divergence.isfinite().all()


GAUSSIAN = [(0.1, 0.7, 0.2), (0.5, -1.0, 0.5), (0.9, 0.05, 1.2)]
TRUNCATED = [(0.1, 0.7, 0.2), (0.5, -0.3, 0.4), (0.9, 1.5, 0.1), (0.3, 0.0, 1.0), (0.2, -1.2, 0.2)]


@pytest.mark.parametrize(
    ("make", "setting"),
    [(Normal, setting) for setting in GAUSSIAN] + [(PositiveNormal, s) for s in TRUNCATED],
)
def test_spike_and_slab_agrees_with_two_million_draws(make, setting):
    inclusion, loc, scale = setting
    torch.manual_seed(1)
    q = SpikeSlab(double(inclusion).logit(), make(double(loc), double(scale)))
    p = SpikeSlab(double(0.06).logit(), make(double(0.0), double(1.0)))
    draws = q.sample((2_000_000,))

    def agrees(values, wanted):
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - wanted) < 3 * error

    agrees((draws != 0).double(), q.inclusion)
    agrees(draws, q.mean)
    agrees((draws - q.mean).square(), q.variance)
    agrees(q.log_prob(draws) - p.log_prob(draws), kl_divergence(q, p))


def test_a_linear_decoder_sees_mean_and_variance_alone():
    torch.manual_seed(2)
    slab = PositiveNormal(torch.randn(5).double(), torch.full((5,), 0.4).double())
    q = SpikeSlab(torch.randn(5).double(), slab)
    decoder, y = torch.randn(5, 3).double(), torch.randn(3).double()
    error = (y - q.sample((400_000,)) @ decoder).square().sum(1)
    wanted = (y - q.mean @ decoder).square().sum() + q.variance @ decoder.square().sum(1)
    assert abs(error.mean() - wanted) < 3 * error.std() / math.sqrt(len(error))


def test_gates_open_at_their_probability_and_are_exactly_zero_or_whole():
    torch.manual_seed(0)
    probability = torch.tensor([0.1, 0.5, 0.9])
    q = SpikeSlab(probability.logit(), Normal(torch.full((3,), 2.0), 1e-12))
    draws = q.rsample((100_000,))
    assert torch.equal(draws[draws != 0], torch.full_like(draws[draws != 0], 2.0))
    found = (draws != 0).float().mean(0)
    assert ((found - probability).abs() < 4 * math.sqrt(0.25 / 100_000)).all()


def test_gates_have_a_gradient():
    torch.manual_seed(0)
    logits = torch.zeros(4, requires_grad=True)
    SpikeSlab(logits, Normal(torch.ones(4), 0.1)).rsample((1000,)).sum().backward()
    assert (logits.grad > 0).all()


def test_divergence_of_gates_is_finite_for_extreme_log_odds():
    logits = torch.tensor([-200.0, -100.0, 0.0, 100.0, 200.0], requires_grad=True)
    found = gate_divergence(logits, torch.tensor(0.06).logit())
    wanted = [-math.log(0.94)] * 2 + [-math.log(2) - 0.5 * math.log(0.06 * 0.94)]
    wanted += [-math.log(0.06)] * 2
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-5)
    found.sum().backward()
    assert logits.grad.isfinite().all()


def test_expanded_distributions_are_the_same():
    q = SpikeSlab(torch.randn(3), PositiveNormal(torch.randn(3), 0.5))
    wide = q.expand(torch.Size((4, 3)))
    assert wide.batch_shape == (4, 3)
    assert torch.equal(wide.mean, q.mean.expand(4, 3))
    assert wide.sample((2,)).shape == (2, 4, 3)


def test_values_outside_the_support_have_no_density():
    assert positive(1.0, 0.5).log_prob(double(-0.1)).item() == -math.inf
