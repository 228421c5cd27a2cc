import math
import re

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, Poisson

from probinterp.criticism import FunctionDraw, PredictiveDraw, PredictiveMixture, discrepancies
from probinterp.criticism.draws import self_describing


def normal_draw(mean, scale):
    law = Normal(mean, scale)
    return FunctionDraw(law.sample, lambda x: Independent(law, 1))


@pytest.fixture
def components():
    means = torch.randn(4, 6, 3, dtype=torch.float64)
    scales = torch.rand(4, 6, 3, dtype=torch.float64) + 0.5
    return means, scales


def test_protocol_asks_for_both_methods():
    class Half:
        def replicate(self): ...

    assert isinstance(normal_draw(torch.zeros(2, 1), 1.0), PredictiveDraw)
    assert not isinstance(Half(), PredictiveDraw)


def test_mixture_has_the_density_and_moments_of_an_equal_mixture(components, device):
    means, scales = (part.to(device) for part in components)
    x = torch.randn(6, 3, dtype=torch.float64, device=device)
    mixture = PredictiveMixture([normal_draw(m, s) for m, s in zip(means, scales, strict=True)])
    law = mixture.likelihood(x)
    joint = Independent(Normal(means.transpose(0, 1), scales.transpose(0, 1)), 1)
    oracle = MixtureSameFamily(Categorical(torch.ones(6, 4, device=device).double()), joint)
    assert law.batch_shape == (6,)
    assert law.event_shape == (3,)
    torch.testing.assert_close(law.log_prob(x), oracle.log_prob(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.mean, oracle.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.variance, oracle.variance, rtol=1e-12, atol=1e-12)


def test_mixture_of_one_draw_is_that_draw(components):
    draw = normal_draw(components[0][0], components[1][0])
    x = torch.randn(6, 3, dtype=torch.float64)
    for discrepancy in (discrepancies.mean_negative_log_likelihood, discrepancies.chi_square):
        alone, mixed = discrepancy(x, draw), discrepancy(x, PredictiveMixture([draw]))
        assert mixed.item() == pytest.approx(alone.item(), rel=1e-14)


def test_mixture_density_survives_impossible_components():
    far = normal_draw(torch.full((1, 1), 1e200, dtype=torch.float64), 1.0)
    near = normal_draw(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    x = torch.zeros(1, 1, dtype=torch.float64)
    expected = -0.5 * math.log(2 * math.pi) - math.log(2)
    for draws in ([far, near], [near, far]):
        value = PredictiveMixture(draws).likelihood(x).log_prob(x)
        assert value.item() == pytest.approx(expected, rel=1e-14)
    assert PredictiveMixture([far, far]).likelihood(x).log_prob(x).item() == -math.inf


def test_mixture_infers_latents_from_the_data_it_scores():
    """A draw whose mean is half of x: the mixture must pass x on, not remember another one."""
    scales = (1.0, 2.0)
    draws = [
        FunctionDraw(lambda: torch.zeros(1, 1), lambda x, s=s: Independent(Normal(x / 2, s), 1))
        for s in scales
    ]
    law = PredictiveMixture(draws).likelihood(torch.tensor([[4.0]]))
    assert law.mean.item() == 2
    assert law.variance.item() == 2.5


def test_mixture_replicates_every_component_equally_often():
    draws = [normal_draw(torch.full((1, 1), float(k)), 1e-9) for k in range(4)]
    sampled = torch.cat([PredictiveMixture(draws).replicate() for _ in range(2000)])
    counts = torch.bincount(sampled.round().long().flatten(), minlength=4)
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_mixture_needs_a_draw():
    message = "PredictiveMixture needs at least one reference draw, got none."
    with pytest.raises(ValueError, match=re.escape(message)):
        PredictiveMixture([])


def test_marginals_of_a_mixture_equal_the_written_out_ones():
    rates = [1.0, 2.0, 3.0]
    laws = [Independent(Poisson(torch.full((50, 4), rate)), 1) for rate in rates]
    draws = [FunctionDraw(law.sample, lambda x, law=law: law) for law in laws]
    x = laws[1].sample()
    each = torch.stack([Poisson(torch.tensor(rate)).log_prob(x) for rate in rates])
    expected = each.logsumexp(0) - math.log(3)
    mixture = PredictiveMixture(draws)
    found = discrepancies.per_feature(discrepancies.mean_negative_log_likelihood)(x, mixture)
    torch.testing.assert_close(found, -expected.mean(0))
    marginal = mixture.likelihood(x).marginals()
    cdf = sum(torch.special.gammaincc(x + 1, torch.full_like(x, rate)) for rate in rates) / 3
    torch.testing.assert_close(marginal.cdf(x), cdf)
    torch.testing.assert_close(marginal.mean, torch.full((50, 4), 2.0))
    assert marginal.support.is_discrete
    assert 0 < discrepancies.pit_uniformity(x, mixture).item() < 1


def test_draws_that_can_describe_themselves_are_left_as_they_are():
    class Labelled(list):
        local = "observed"

    labelled = Labelled([normal_draw(torch.zeros(2, 1), 1.0)])
    assert self_describing(labelled) is labelled
    bare = self_describing(iter([FunctionDraw(torch.zeros, lambda x: None, "prior")] * 3))
    assert (bare.local, bare.scoring, bare.point_estimate) == ("prior", None, False)
    assert len(list(bare)) == 3
    assert self_describing([]).local is None
