"""Nested simulation: the law of the in-sample p-value under the fitted model, and its rank.

Normal locations with sd 1 and a flat prior: the p-value of a check of the squared residuals does
not depend on the locations, so that its calibrated version is exactly uniform.
"""

import joblib
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Independent, Normal

from probinterp.criticism import (
    CalibratedPPCResult,
    FunctionDraw,
    calibrated_ppc,
    discrepancies,
    ppc,
)

N_UNITS, N_FEATURES = 8, 6


def location_draws():
    """Function that makes exact posterior draws; inside another, so that processes can get it."""

    def make(x, n_draws, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(n_draws, x.shape[1], generator=generator, dtype=x.dtype)

        def draw(mean):
            law = Independent(Normal(mean.expand(x.shape), 1.0), 1)
            return FunctionDraw(law.sample, lambda x: law)

        class Draws(list):
            reference = draw(x.mean(0))

        return Draws(map(draw, x.mean(0) + noise / len(x) ** 0.5))

    return make


def location_refits(x, n_draws):
    """Refits that processes can be sent: a class made inside a function."""
    make, mean, shape = location_draws(), x.mean(0), x.shape

    class LocationRefits:
        def simulate(self, seed):
            generator = torch.Generator().manual_seed(seed)
            both = torch.randn(2, *shape, generator=generator, dtype=torch.float64) + mean
            return both[0], both[1]

        def fit(self, x_obs, x_new, seed):
            return make(x_obs, n_draws, seed)

    return LocationRefits()


@pytest.fixture
def data():
    return torch.randn(N_UNITS, N_FEATURES, dtype=torch.float64) + 3


def check(x, n_refits=19, seed=0, n_jobs=None, discrepancy=discrepancies.chi_square):
    draws = location_draws()(x, 39, seed)
    refits = location_refits(x, 39)
    return calibrated_ppc(
        draws, x, discrepancy, refits, n_refits=n_refits, seed=seed, n_jobs=n_jobs
    )


def test_rank_among_the_refits_by_hand(data):
    observed = ppc(location_draws()(data, 39, 0), data, discrepancies.mean, seed=0)
    p = observed.p_randomised
    refits = torch.stack([p - 0.2, p - 0.1, p, p + 0.1])
    result = CalibratedPPCResult(observed, refits, torch.tensor(0.5, dtype=torch.float64), 0)
    assert result.n_refits == 4
    assert result.p_value.item() == pytest.approx((2 + 0.5 * 2) / 5)
    assert result.p_two_sided.item() == pytest.approx(1.0)
    assert result.mc_error.item() == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    low = CalibratedPPCResult(observed, refits + 0.5, result.uniform, 0)
    assert low.p_value.item() == pytest.approx(0.5 / 5)
    assert low.p_two_sided.item() == pytest.approx(2 / 5)


def test_refits_are_checks_of_simulated_data(data):
    """In-sample residuals are too small: the p-values of the refits are far above one half."""
    result = check(data, n_refits=99)
    assert result.p_refits.shape == (99,)
    expected = ppc(location_draws()(data, 39, 0), data, discrepancies.chi_square, seed=1)
    assert result.observed.heldout.item() == pytest.approx(expected.heldout.item())
    assert not result.observed.calibrated
    assert result.p_refits.mean().item() > 0.7


def test_misfit_hidden_from_the_plain_check_is_found(data):
    """Residuals 1.25 times too large; the fit of 6 locations to 8 units absorbs some of it."""
    wide = (data - data.mean(0)) * 1.6
    result = check(wide, n_refits=99)
    assert result.p_two_sided.item() == pytest.approx(0.02)
    assert result.p_value.item() < 0.01


def test_one_value_per_feature(data):
    result = check(data, discrepancy=discrepancies.feature_variance)
    assert result.p_refits.shape == (19, N_FEATURES)
    assert result.p_value.shape == result.p_adjusted.shape == (N_FEATURES,)
    assert (result.p_adjusted >= result.p_two_sided).all()


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_backends_give_the_same_bits(backend, data):
    expected = check(data)
    with joblib.parallel_config(backend=backend):
        result = check(data, n_jobs=2)
    assert torch.equal(result.p_refits, expected.p_refits)
    assert torch.equal(result.p_value, expected.p_value)


def test_bad_requests_are_refused(data):
    with pytest.raises(TypeError, match=r"methods simulate\(seed\) and fit.*got a int"):
        calibrated_ppc([], data, discrepancies.mean, 3)
    with pytest.raises(ValueError, match="n_refits must be at least 1, got 0"):
        check(data, n_refits=0)
    refits = location_refits(data[:3], 9)
    draws = location_draws()(data, 9, 0)
    with pytest.raises(ValueError, match=r"shape of x_obs, \(8, 6\), got \(3, 6\) in refit 0"):
        calibrated_ppc(draws, data, discrepancies.mean, refits)
    other = location_refits(data, 19)
    with pytest.raises(ValueError, match="draws as the observed check, 9, got 19 in refit 0"):
        calibrated_ppc(draws, data, discrepancies.mean, other)


@pytest.mark.slow
def test_calibrated_p_is_uniform_where_the_plain_one_is_not():
    """200 data sets, 19 refits of 39 draws; critical Kolmogorov distance .156 at level 1e-4."""
    results = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(1000 + seed)
        x = torch.randn(N_UNITS, N_FEATURES, generator=generator, dtype=torch.float64)
        results.append(check(x, seed=seed))
    plain = torch.stack([result.observed.p_rank for result in results]).numpy()
    calibrated = torch.stack([result.p_value for result in results]).numpy()
    assert kstest(plain, "uniform").statistic > 0.3
    assert kstest(calibrated, "uniform").statistic < 0.156
    rejected = [result.p_two_sided.item() <= 0.1 for result in results]
    assert 0.02 <= sum(rejected) / 200 <= 0.21
