import math

import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, SequentialStop, pop_pc, pop_pc_suite
from probinterp.criticism.discrepancies import feature_variance, mean

LAW = Independent(Normal(torch.zeros(10, 2), 1.0), 1)


def draws(n):
    return [FunctionDraw(LAW.sample, lambda x: LAW)] * n


def test_decision_computed_by_hand():
    """10 of 10 extreme: the beta mixture B(11, 1) = 1 / 11 against .975^10 and .025^10."""
    extreme = torch.tensor(10.0)
    odds = min(1 / (11 * 0.975**10), 1 / (11 * 0.025**10))
    assert odds == pytest.approx(0.1171, abs=1e-4)
    assert not SequentialStop(error=2 / odds * 0.99 if odds > 2 else 0.5).decided(extreme, 10)
    middle = torch.tensor(20.0)  # 20 of 40: B(21, 21) / (.025^20 .975^20)
    log_mixture = 2 * math.lgamma(21) - math.lgamma(42)
    log_odds = log_mixture - 20 * math.log(0.025 * 0.975)
    assert SequentialStop(error=2.001 * math.exp(-log_odds)).decided(middle, 40)
    assert not SequentialStop(error=1.999 * math.exp(-log_odds)).decided(middle, 40)


@pytest.mark.parametrize("p", [0.0, 0.005, 0.025, 0.05, 0.5, 0.975])
def test_wrong_decisions_are_rarer_than_the_error(p):
    """4,000 runs of up to 1,000 draws, looked at as often as pop_pc does, error .05."""
    stop = SequentialStop(error=0.05)
    extreme = (torch.rand(4000, 1000) < p).cumsum(1)
    outside = p < 0.025 or p > 0.975
    wrong, open_runs, n = torch.zeros(4000, dtype=torch.bool), torch.ones(4000).bool(), 40
    while n <= 1000:
        decided = stop.decided(extreme[:, n - 1], n) & open_runs
        share = extreme[:, n - 1] / n
        says_outside = (share < 0.025) | (share > 0.975)
        at_boundary = p in (0.025, 0.975)
        wrong |= decided & (at_boundary | (says_outside != outside))
        open_runs &= ~decided
        n = stop.next_look(n)
    assert wrong.double().mean() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4000)
    if p in (0.0, 0.5):
        assert not open_runs.any()


def test_clear_cases_stop_early_and_say_so():
    result = pop_pc(
        draws(5000), torch.zeros(10, 2), mean, reference=draws(1)[0], stop=SequentialStop()
    )
    assert 40 <= result.n_draws < 120
    assert result.notes == (
        f"Drawing stopped after {result.n_draws} replicates: every decision is certain enough.",
    )
    misfit = pop_pc(draws(5000), torch.full((10, 2), 9.0), mean, stop=SequentialStop())
    assert 250 < misfit.n_draws < 600  # p = 0 must be told from .025
    assert misfit.p_two_sided <= 0.05


def test_too_few_draws_are_used_up_and_noted():
    result = pop_pc(draws(60), torch.full((10, 2), 9.0), mean, stop=SequentialStop())
    assert result.n_draws == 59  # the first is the reference
    assert result.notes == (
        "After all 59 replicates some decision is not certain enough; draw more.",
    )


def test_all_values_of_all_discrepancies_must_be_decided():
    x = torch.full((10, 2), 9.0)
    suite = {"mean": mean, "variance": feature_variance}
    both = pop_pc_suite(draws(5000), x, suite, stop=SequentialStop())
    alone = pop_pc(draws(5000), x * torch.randn(10, 2), mean, stop=SequentialStop())
    assert both["mean"].n_draws == both["variance"].n_draws >= 250
    assert alone.n_draws <= both["mean"].n_draws


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": 0}, "alpha must lie between 0 and 1, got 0"),
        ({"error": 1.0}, "error must lie between 0 and 1, got 1.0"),
        ({"first_look": 0}, "first_look must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SequentialStop(**options)
