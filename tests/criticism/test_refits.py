import math

import joblib
import pytest
import torch
from scipy.stats import t as student
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, PointEstimateWarning, Refits, pop_pc, pop_pc_suite
from probinterp.criticism.discrepancies import mean, mean_negative_log_likelihood


class PointDraws:
    """Draws of a normal law with a point-estimated mean and known unit variance."""

    point_estimate = True

    def __init__(self, location, n_new, n_obs, n_draws=50):
        self.law = Independent(Normal(location.expand(n_new, 1), 1.0), 1)
        self.n_obs, self.n_draws = n_obs, n_draws
        self.reference = FunctionDraw(self.law.sample, lambda x: self.law)

    def __len__(self):
        return self.n_draws

    def __iter__(self):
        return iter([self.reference] * self.n_draws)

    def replicate_chunk(self, start, stop):
        return self.law.sample((stop - start,))


class NormalRefits:
    """Simulate from, and refit, the normal law."""

    def __init__(self, location, n_obs, n_new):
        self.location, self.n_obs, self.n_new = location, n_obs, n_new

    def simulate(self, seed):
        generator = torch.Generator().manual_seed(seed)
        x = self.location + torch.randn(self.n_obs + self.n_new, 1, generator=generator)
        return x[: self.n_obs], x[self.n_obs :]

    def fit(self, x_obs, x_new, seed):
        return PointDraws(x_obs.mean(), len(x_new), len(x_obs))


def check(x_obs, x_new, discrepancy=mean, **options):
    location = x_obs.mean()
    draws = PointDraws(location, len(x_new), len(x_obs), 200)
    refits = NormalRefits(location, len(x_obs), len(x_new))
    return pop_pc(draws, x_new, discrepancy, refits=refits, **options)


def test_p_values_computed_by_hand(result):
    """Excess 2 - 1.5 = .5 among refits -1, 0, 1, 2: two above; U = 1/4."""
    found = result([2.0], [1.0, 2.0], refitted=torch.tensor([-1.0, 0.0, 1.0, 2.0]).double())
    assert found.excess.item() == 0.5
    assert found.p_refit.item() == 1.0  # 2 (2 + 1) / 5, at most 1
    assert found.p_refit_t.item() == pytest.approx(1.0)  # their mean is .5 too
    shifted = result([4.0], [1.0, 2.0], refitted=torch.tensor([-1.0, 0.0, 1.0, 2.0]).double())
    assert shifted.p_refit.item() == pytest.approx(2 * 1 / 5)  # none above 2.5
    spread = math.sqrt(5 / 3) * math.sqrt(1 + 1 / 4)
    assert shifted.p_refit_t.item() == pytest.approx(2 * student.sf(2 / spread, 3))


def test_refits_repair_the_false_alarms_of_a_point_estimate():
    """The mean of as many new as old rows: sd sqrt(2) of that of the replicates.

    Rejection without refits 2 Phi(-1.96 / sqrt 2) = .166; 200 data sets, 4 standard errors.
    """
    torch.manual_seed(1)
    rejected = {"draws": 0, "rank": 0, "t": 0}
    for seed in range(200):
        x = torch.randn(40, 1)
        found = check(x[:20], x[20:], calibrate_refits=39, seed=seed)
        rejected["draws"] += int(found.p_two_sided <= 0.05)
        rejected["rank"] += int(found.p_refit <= 0.05)
        rejected["t"] += int(found.p_refit_t <= 0.05)
    assert rejected["draws"] / 200 == pytest.approx(0.166, abs=0.106)
    assert rejected["rank"] / 200 == pytest.approx(0.05, abs=0.062)
    assert rejected["t"] / 200 == pytest.approx(0.05, abs=0.062)


def test_refits_take_the_place_of_the_warning():
    x = torch.randn(40, 1)
    with pytest.warns(PointEstimateWarning):
        assert not pop_pc(PointDraws(x.mean(), 20, 20), x[20:], mean).calibrated
    found = check(x[:20], x[20:], calibrate_refits=5)
    assert found.calibrated
    assert found.notes == (
        "Calibrated by 5 refits to data simulated from the fit: p_decision counts the error of "
        "the fit in.",
    )
    assert found.summary()["n_refits"] == 5
    assert found.decided_by == "refit t"


def test_suite_and_single_check_share_their_refits():
    x = torch.randn(40, 1)
    draws, refits = PointDraws(x[:20].mean(), 20, 20), NormalRefits(x[:20].mean(), 20, 20)
    suite = {"mean": mean, "nll": mean_negative_log_likelihood}
    found = pop_pc_suite(draws, x[20:], suite, calibrate_refits=4, refits=refits)
    alone = pop_pc(draws, x[20:], mean_negative_log_likelihood, calibrate_refits=4, refits=refits)
    assert torch.equal(found["nll"].refitted, alone.refitted)
    assert found["mean"].refitted.shape == (4,)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_every_backend_gives_the_same_bits(backend):
    x = torch.randn(40, 1)
    alone = check(x[:20], x[20:], calibrate_refits=6, n_jobs=1)
    with joblib.parallel_config(backend=backend):
        parallel = check(x[:20], x[20:], calibrate_refits=6, n_jobs=2)
    assert torch.equal(alone.refitted, parallel.refitted)


def test_protocol_is_recognised():
    assert isinstance(NormalRefits(torch.tensor(0.0), 2, 2), Refits)
    assert not isinstance(object(), Refits)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"calibrate_refits": 1}, ValueError, "calibrate_refits must be 0 or at least 2, got 1"),
        ({"calibrate_refits": -1}, ValueError, "calibrate_refits must be 0 or at least 2"),
        ({"calibrate_refits": 0}, ValueError, "refits were given, but calibrate_refits is 0"),
        ({"calibrate_refits": 5, "refits": None}, ValueError, "calibrate_refits=5 needs refits"),
        ({"calibrate_refits": 5, "refits": 3}, TypeError, "refits must have the methods"),
        ({"calibrate_refits": 5, "kind": "realised"}, ValueError, "needs kind='plugin' or"),
    ],
)
def test_bad_settings_are_refused(options, error, text):
    x = torch.randn(10, 1)
    settings = {"refits": NormalRefits(torch.tensor(0.0), 10, 10)} | options
    draws = PointDraws(x.mean(), 10, 1000)
    with pytest.raises(error, match=text):
        pop_pc(draws, x, mean, **settings)


def test_refits_that_do_not_vary_say_no_more_than_their_rank(result):
    """A rare event that no refit had: a normal law without spread would call it impossible."""
    found = result([[0.001, 0.0]], torch.zeros(99, 2), refitted=torch.zeros(5, 2).double())
    assert found.decided_by == "refit t"
    assert found.p_refit_t.tolist() == found.p_refit.tolist()
    assert found.p_refit_t[0].item() == pytest.approx(2 / 6)
    assert found.verdict().decision == "no misfit"


def test_refits_leave_the_callers_random_numbers_alone():
    class Careless(NormalRefits):
        def simulate(self, seed):
            torch.manual_seed(seed)
            return torch.randn(20, 1), torch.randn(20, 1)

        def fit(self, x_obs, x_new, seed):
            return super().fit(x_obs + 0.1 * torch.randn(()), x_new, seed)  # ignores its seed

    draws, refits = PointDraws(torch.tensor(0.0), 20, 20), Careless(torch.tensor(0.0), 20, 20)
    found = []
    for caller in (1, 2):
        torch.manual_seed(caller)
        state = torch.get_rng_state()
        found.append(pop_pc(draws, torch.zeros(20, 1), mean, calibrate_refits=3, refits=refits))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0].refitted, found[1].refitted)


def test_infinite_discrepancies_on_both_sides_cannot_be_refitted():
    def infinite(x, draw):
        return x.sum() + math.inf

    with pytest.raises(ValueError, match="infinite is infinite for the data and for replicates"):
        check(torch.randn(20, 1), torch.randn(20, 1), infinite, calibrate_refits=2)
