import math

import pytest
import torch
from scipy import integrate
from torch.distributions import Normal, kl_divergence

from probinterp.hard_concrete import HardConcrete
from probinterp.spike_slab import PositiveNormal, SpikeSlab

SETTINGS = [(-2.0, 0.7), (0.0, -1.3), (1.5, 2.0)]


def made(log_alpha, loc):
    return HardConcrete(*(torch.tensor(v, dtype=torch.float64) for v in (log_alpha, loc)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_moments_and_probabilities_agree_with_two_million_draws(setting):
    torch.manual_seed(0)
    q = made(*setting)
    draws = q.sample((2_000_000,))
    for values, wanted in (
        ((draws != 0).double(), q.inclusion),
        (draws, q.mean),
        ((draws - q.mean).square(), q.variance),
        ((draws == q.loc).double(), q.log_prob(q.loc).exp()),
        ((draws == 0).double(), q.log_prob(torch.zeros_like(q.loc)).exp()),
    ):
        assert abs(values.mean() - wanted) < 3 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_density_between_the_point_masses_makes_up_the_rest(setting):
    q = made(*setting)

    def density(gate):
        return (q.log_prob(gate * q.loc).exp() * q.loc.abs()).item()

    inside = integrate.quad(density, 0, 1, epsabs=0, epsrel=1e-10)[0]
    ends = sum(q.log_prob(value).exp().item() for value in (torch.zeros_like(q.loc), q.loc))
    assert inside + ends == pytest.approx(1.0, abs=1e-8)


def test_the_divergence_is_that_of_the_gates_plus_the_cost_of_the_value():
    q = made(0.4, 1.2)
    p = SpikeSlab(torch.tensor(0.1).logit(), Normal(torch.tensor(0.0), 2.0))
    on = 1 / (1 + math.exp(-(0.4 - 2 / 3 * math.log(0.1 / 1.1))))
    assert q.inclusion.item() == pytest.approx(on)
    gates = on * math.log(on / 0.1) + (1 - on) * math.log((1 - on) / 0.9)
    assert kl_divergence(q, p).item() == pytest.approx(gates + on * 1.2**2 / 8, rel=1e-6)
    positive = SpikeSlab(torch.tensor(0.1).logit(), PositiveNormal(torch.tensor(0.0), 1.0))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, positive)


def test_expanded_distributions_are_the_same():
    q = HardConcrete(torch.randn(3), torch.randn(3))
    assert torch.equal(q.expand(torch.Size((4, 3))).mean, q.mean.expand(4, 3))
