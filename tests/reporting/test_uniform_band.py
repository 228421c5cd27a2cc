import numpy as np
import pytest
from scipy.stats import binom

from probinterp.reporting.uniform_band import GRID, uniform_band


def stay_inside(samples, low, high):
    shares = np.stack([(samples <= u).mean(axis=1) for u in GRID], axis=1)
    return ((shares >= low - 1e-9) & (shares <= high + 1e-9)).all(axis=1).mean()


@pytest.mark.parametrize(("n", "level"), [(29, 0.95), (29, 0.5), (200, 0.95)])
def test_uniform_samples_stay_inside_with_the_level_asked_for(n, level):
    samples = np.random.default_rng(1).random((4000, n))
    share = stay_inside(samples, *uniform_band(n, level))
    # the band is discrete and errs to the wide side; 4 Monte-Carlo standard errors
    error = np.sqrt(level * (1 - level) / 4000)
    assert level - 4 * error < share < level + 0.02 + 4 * error


def test_the_level_found_at_a_thousand_values_does_for_more():
    samples = np.random.default_rng(2).random((500, 5000))
    assert 0.91 < stay_inside(samples, *uniform_band(5000)) < 0.99


def test_one_value_is_held_where_its_pointwise_bounds_hold():
    # with n = 1 the count is 0 below the value and 1 above it: the only way out is a value
    # below every u with sf(0) < gamma / 2 or above every u with cdf(0) < gamma / 2
    low, high = uniform_band(1)
    outside = GRID[high == 0].max(initial=0.0) + (1 - GRID[low == 1]).max(initial=0.0)
    assert outside <= 0.05 + 1e-12


def test_the_simultaneous_band_is_wider_than_the_pointwise_one():
    low, high = uniform_band(100)
    pointwise = binom.ppf(0.025, 100, GRID) / 100, binom.ppf(0.975, 100, GRID) / 100
    assert (low <= pointwise[0]).all()
    assert (high >= pointwise[1]).all()
    assert (high - low)[99] > 1.4 * (pointwise[1] - pointwise[0])[99]


def test_the_band_is_symmetric():
    low, high = uniform_band(50)
    np.testing.assert_allclose(low, 1 - high[::-1], atol=1 / 50 + 1e-12)


@pytest.mark.parametrize(
    ("n", "level", "text"),
    [
        (0, 0.95, "a band needs at least 1 value, got 0"),
        (10, 1.0, "level must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(n, level, text):
    with pytest.raises(ValueError, match=text):
        uniform_band(n, level)
