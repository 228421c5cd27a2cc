"""Rounded log-normal counts against scipy and brute force."""

import numpy as np
import pytest
import torch
from scipy import stats

from probinterp.counts import RoundedLogNormal
from probinterp.likelihoods import RoundedLogNormalLikelihood
from probinterp.models import Batch

LOC = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
SCALE = torch.tensor([0.7, 0.4, 1.3], dtype=torch.float64)
SIZE = torch.tensor([1.7], dtype=torch.float64)


def expected_log_pmf(count, loc, scale, size):
    upper = stats.norm.cdf((np.log1p((count + 0.5) / size) - loc) / scale)
    lower = stats.norm.cdf((np.log1p((count - 0.5) / size) - loc) / scale) if count > 0 else 0.0
    return np.log(upper - lower)


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 0, 5), (3, 1, 40)])
def test_log_probability_equals_normal_bins(counts):
    law = RoundedLogNormal(LOC, SCALE, SIZE)
    value = torch.tensor([counts], dtype=torch.float64)
    parts = zip(counts, LOC[0].tolist(), SCALE.tolist(), strict=True)
    expected = sum(expected_log_pmf(c, m, s, 1.7) for c, m, s in parts)
    assert law.log_prob(value).item() == pytest.approx(expected, rel=1e-9)


def test_probabilities_sum_to_one():
    counts = torch.arange(60_000, dtype=torch.float64).reshape(-1, 1)
    law = RoundedLogNormal(LOC[:, 2:].expand(len(counts), 1), SCALE[2:], SIZE.expand(len(counts)))
    assert law.log_prob(counts).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_far_tails_stay_finite_with_finite_gradients():
    loc = torch.tensor([[-30.0, 30.0]], requires_grad=True)
    law = RoundedLogNormal(loc, torch.full((2,), 0.2), torch.ones(1))
    log_prob = law.log_prob(torch.tensor([[50.0, 0.0]])).sum()
    (gradient,) = torch.autograd.grad(log_prob, loc)
    assert torch.isfinite(log_prob)
    assert torch.isfinite(gradient).all()


def test_moments_equal_those_of_samples():
    torch.manual_seed(0)
    law = RoundedLogNormal(LOC + 5, SCALE / 2, SIZE)  # large counts: rounding is negligible
    draws = law.sample((200_000,))[:, 0]
    error = draws.std(0) / np.sqrt(len(draws))
    assert ((draws.mean(0) - law.mean[0]).abs() < 5 * error).all()
    assert draws.var(0).numpy() == pytest.approx(law.variance[0].numpy(), rel=0.05)
    assert (draws == draws.round()).all()
    assert (draws >= 0).all()


def test_likelihood_shows_the_encoder_standardised_logarithms():
    batch = Batch(torch.tensor([[0.0, 3.0], [4.0, 1.0]]), size_factor=torch.tensor([1.0, 2.0]))
    likelihood = RoundedLogNormalLikelihood(2)
    likelihood.initialize(batch)
    logged = torch.log1p(batch.x / torch.tensor([[1.0], [2.0]]))
    expected = (logged - logged.mean(0)) / logged.std(0, correction=0)
    torch.testing.assert_close(likelihood.encoder_input(batch), expected)
    with pytest.raises(ValueError, match="size_factor"):
        likelihood(torch.zeros(2, 2), Batch(batch.x))


def test_variance_of_rare_counts_is_positive():
    """The difference of the moments was 0 or negative in float32: -9 to -5 sd below one."""
    law = RoundedLogNormal(torch.linspace(-9, -3, 50), torch.ones(50), torch.tensor([1.0]))
    assert (law.variance > 0).all()
    rare = law.mean < 0.01
    assert rare.any()
    assert (law.variance[rare] >= 0.98 * law.mean[rare]).all()


def test_residuals_of_all_but_impossible_counts_are_finite():
    law = RoundedLogNormal(torch.full((1, 3), -80.0), torch.ones(3), torch.tensor([1.0]))
    assert (law.mean == 0).all()
    assert ((5 - law.mean) / law.variance.sqrt()).square().isfinite().all()
