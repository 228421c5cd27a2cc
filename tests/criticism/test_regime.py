import math

import pytest
import torch
from torch.distributions import Normal

from probinterp.criticism.regime import RegimeNumber


def test_equals_the_formula_on_stored_moments(device):
    means = torch.randn(9, 5, 2, dtype=torch.float64, device=device)
    scales = torch.rand(9, 5, 2, dtype=torch.float64, device=device) + 0.5
    regime = RegimeNumber(10)
    for mean, scale in zip(means, scales, strict=True):
        regime.update(Normal(mean, scale))
    expected = (means.var(0) / scales.square().mean(0)).mean() * math.sqrt(2 * 10)
    assert regime.value() == pytest.approx(expected.item(), rel=1e-12)


def test_is_stable_for_means_far_from_zero():
    """A sum of squares minus the squared sum would cancel here."""
    regime = RegimeNumber(1)
    for shift in (-1.0, 0.0, 1.0):
        regime.update(Normal(torch.full((1, 1), 1e8 + shift, dtype=torch.float64), 1.0))
    assert regime.value() == pytest.approx(math.sqrt(2), rel=1e-6)


def test_is_zero_for_known_parameters_even_without_noise():
    regime = RegimeNumber(4)
    for _ in range(3):
        regime.update(Normal(torch.ones(2, 2), torch.zeros(2, 2), validate_args=False))
    assert regime.value() == 0


def test_needs_two_draws():
    regime = RegimeNumber(4)
    assert regime.value() is None
    regime.update(Normal(torch.ones(2, 2), 1.0))
    assert regime.value() is None


def test_moments_that_units_share_count_for_every_unit():
    """A likelihood without a unit axis broadcasts over the data; its scalars are still N G."""
    whole, shared = RegimeNumber(60), RegimeNumber(60)
    for mean in torch.randn(9, 3, dtype=torch.float64):
        whole.update(Normal(mean.expand(20, 3), 1.0))
        shared.update(Normal(mean, 1.0))
    assert shared.value() == pytest.approx(whole.value(), rel=1e-12)
