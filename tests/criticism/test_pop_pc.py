import math
import re

import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, pop_pc, ppc
from probinterp.criticism.discrepancies import (
    feature_variance,
    mean,
    mean_negative_log_likelihood,
)


class StubDraw:
    def replicate(self):
        return torch.tensor([[3.0], [4.0]])

    def likelihood(self, x):
        return Independent(Normal(torch.zeros(2, 1), 1.0), 1)


def fixed_draw(replicate, location=0.0, scale=1.0):
    """A draw that always replicates the same data, so that results do not depend on a seed."""
    law = Independent(Normal(torch.full_like(replicate, location), scale), 1)
    return FunctionDraw(lambda: replicate, lambda x: law)


def random_draw(location=0.0):
    law = Independent(Normal(torch.full((20, 3), location), 1.0), 1)
    return FunctionDraw(law.sample, lambda x: law)


def test_counts_replicates_at_least_as_extreme():
    result = pop_pc([StubDraw()], torch.tensor([[0.0], [0.0]]), mean_negative_log_likelihood)
    assert result.heldout.item() == pytest.approx(0.5 * math.log(2 * math.pi))
    assert result.p_value.item() == 1.0


def test_plugin_numbers_computed_by_hand(device):
    """Replicated 1, 2, 2, 3, held-out 2, statistic: the mean."""
    values = torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=torch.float64, device=device)
    draws = [fixed_draw(value.expand(4, 2)) for value in values]
    x = torch.full((4, 2), 2.0, dtype=torch.float64, device=device)
    result = pop_pc(draws, x, mean, reference=draws[0])
    assert result.replicated.tolist() == values.tolist()
    assert result.heldout.tolist() == [2.0]
    assert result.p_value.item() == 0.75
    u = result.uniform.item()
    assert 0 <= u < 1
    assert result.p_randomised.item() == pytest.approx((1 + 2 * u) / 4, abs=1e-12)
    assert result.p_rank.item() == pytest.approx((1 + 3 * u) / 5, abs=1e-12)
    assert result.mc_error.item() == pytest.approx(math.sqrt(0.75 * 0.25 / 4), abs=1e-12)
    assert result.z.item() == 0
    assert (result.n_new, result.n_features, result.n_draws) == (4, 2, 4)


def test_where_each_kind_evaluates_the_discrepancy():
    """d(x, draw) = mean of x minus the location of the draw tells which draw was asked."""

    def offset(x, draw):
        return (x - draw.likelihood(x).mean).mean()

    draws = [fixed_draw(torch.full((2, 1), 10.0 * k), location=float(k)) for k in range(4)]
    x = torch.zeros(2, 1)
    plugin = pop_pc(draws, x, offset)
    assert plugin.heldout.tolist() == [0.0]
    assert plugin.replicated.tolist() == [10.0, 20.0, 30.0]
    predictive = pop_pc(draws, x, offset, kind="predictive", n_reference=2)
    assert predictive.heldout.tolist() == [-0.5]
    assert predictive.replicated.tolist() == [19.5, 29.5]
    with pytest.warns(match="regime number of this realised check is 3.33"):
        realised = pop_pc(draws, x, offset, kind="realised")
    assert realised.heldout.tolist() == [0.0, -1.0, -2.0, -3.0]
    assert realised.replicated.tolist() == [0.0, 9.0, 18.0, 27.0]
    assert realised.p_value.item() == 1.0


def test_one_value_per_feature_and_one_uniform_number_each():
    draws = [random_draw() for _ in range(50)]
    result = pop_pc(draws, torch.randn(20, 3), feature_variance)
    assert result.replicated.shape == (49, 3)
    assert result.heldout.shape == (1, 3)
    assert result.p_value.shape == result.z.shape == (3,)
    assert len(set(result.uniform.tolist())) == 3
    assert result.discrepancy == "feature_variance"


@pytest.mark.parametrize("kind", ["plugin", "predictive", "realised"])
def test_columns_are_checked_as_if_they_were_alone(kind):
    """One call with a value per column equals one call per column (all numbers, all kinds)."""
    n_sets, n_draws = 5, 12
    generator = torch.Generator().manual_seed(3)
    replicates = torch.randn(n_draws, 8, n_sets, generator=generator, dtype=torch.float64)
    locations = torch.randn(n_draws, n_sets, generator=generator, dtype=torch.float64) / 50
    x = torch.randn(8, n_sets, generator=generator, dtype=torch.float64)

    def draws(columns):
        for replicate, location in zip(replicates, locations, strict=True):
            law = Normal(location[columns].expand_as(x[:, columns]), 1.0)
            yield FunctionDraw(lambda r=replicate: r[:, columns], lambda x, law=law: law)

    def per_column(x, draw):
        return -draw.likelihood(x).log_prob(x).mean(0)

    options = {"kind": kind, "n_reference": 3}
    together = pop_pc(draws(slice(None)), x, per_column, **options)
    for k in range(n_sets):
        one = slice(k, k + 1)
        alone = pop_pc(draws(one), x[:, one], per_column, **options)
        torch.testing.assert_close(alone.replicated[:, 0], together.replicated[:, k])
        torch.testing.assert_close(alone.heldout[:, 0], together.heldout[:, k])
        assert alone.p_value.item() == together.p_value[k].item()


def test_permuting_draws_or_rows_changes_nothing():
    draws = [fixed_draw(torch.randn(9, 2, dtype=torch.float64)) for _ in range(40)]
    x = torch.randn(9, 2, dtype=torch.float64)
    before = pop_pc(draws, x, mean_negative_log_likelihood, reference=draws[0])
    shuffled = [draws[k] for k in torch.randperm(40)]
    after = pop_pc(shuffled, x[torch.randperm(9)], mean_negative_log_likelihood, reference=draws[0])
    for name in ("p_value", "p_rank", "p_two_sided", "z"):
        assert getattr(after, name).item() == pytest.approx(getattr(before, name).item(), abs=1e-12)


def test_same_seed_same_bits_and_the_global_generator_is_left_alone():
    x, draws = torch.randn(20, 3), [random_draw() for _ in range(10)]
    state = torch.get_rng_state()
    first, second = (pop_pc(draws, x, mean, seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.replicated, second.replicated)
    assert torch.equal(first.uniform, second.uniform)
    other = pop_pc(draws, x, mean, seed=5)
    assert not torch.equal(first.replicated, other.replicated)
    assert first.uniform != other.uniform


def test_replicates_do_not_repeat_data_simulated_under_the_same_seed():
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    correlation = torch.corrcoef(torch.stack([x.flatten(), _first_replicate(x, seed=0).flatten()]))[
        0, 1
    ]
    assert abs(correlation) < 0.5


def _first_replicate(x, seed):
    seen = []

    def keep(data, draw):
        seen.append(data)
        return data.mean()

    pop_pc([random_draw(), random_draw()], x, keep, seed=seed)
    return seen[1]


def test_parameters_of_a_draw_are_not_differentiated():
    location = torch.nn.Parameter(torch.zeros(20, 3))

    class Draw:
        def replicate(self):
            return location + torch.randn(20, 3)

        def likelihood(self, x):
            return Independent(Normal(location, 1.0), 1)

    result = pop_pc([Draw(), Draw()], torch.randn(20, 3), mean_negative_log_likelihood)
    assert not result.replicated.requires_grad


def test_ppc_compares_with_the_fitted_data_and_says_so():
    draws = [random_draw() for _ in range(100)]
    x = torch.randn(20, 3)
    result = ppc(draws, x, mean_negative_log_likelihood)
    held_out = pop_pc(draws, x, mean_negative_log_likelihood)
    assert torch.equal(result.replicated, held_out.replicated)
    assert (result.check, result.calibrated, result.n_obs) == ("ppc", False, 20)
    assert (held_out.check, held_out.calibrated, held_out.n_obs) == ("pop-pc", True, None)
    assert result.notes == ("The data were used twice: p is not uniform under a correct model.",)
    assert held_out.notes == ()
    assert str(result.verdict()).endswith("; the p-value is not calibrated.")
    realised = ppc(draws, x, mean_negative_log_likelihood, kind="realised")
    assert realised.regime is None
    assert realised.heldout.shape == (100,)


def test_misfit_gives_a_small_p_and_a_positive_effect():
    result = pop_pc(
        [random_draw() for _ in range(200)], 2 * torch.randn(20, 3), mean_negative_log_likelihood
    )
    assert result.p_value.item() == 0
    assert result.z.item() > 3
    assert "shows misfit" in str(result.verdict())


class Unending:
    """Draws of a posterior that knows more about itself than a list does."""

    def __init__(self, **attributes):
        self.__dict__ |= attributes

    def __iter__(self):
        return (random_draw() for _ in range(5))


X = torch.randn(20, 3)
NAN, INFINITE = X.clone(), X.clone()
NAN[2, 1] = math.nan
INFINITE[:2] = math.inf
BAD = {
    "unknown kind": (
        lambda: pop_pc([random_draw()], X, mean, kind="marginal"),
        ValueError,
        "kind must be one of plugin, predictive, realised, got 'marginal'.",
    ),
    "discrepancy that is none": (
        lambda: pop_pc([random_draw()], X, "mean"),
        TypeError,
        "discrepancy must be a function (x, draw) -> Tensor, got str for",
    ),
    "a draw instead of draws": (
        lambda: pop_pc(random_draw(), X, mean),
        TypeError,
        "draws must be an iterable of draws, got a single FunctionDraw; put it in a list.",
    ),
    "draws that cannot be iterated": (
        lambda: pop_pc(3, X, mean),
        TypeError,
        "draws must be an iterable of draws, got int.",
    ),
    "arrays of replicates": (
        lambda: pop_pc(torch.randn(5, 20, 3), X, mean),
        TypeError,
        "draws must have the methods replicate() and likelihood(x); the first is a Tensor.",
    ),
    "something else among the draws": (
        lambda: pop_pc([random_draw(), random_draw(), {}], X, mean),
        TypeError,
        "draws must have the methods replicate() and likelihood(x); draw 1 is a dict.",
    ),
    "numpy data": (
        lambda: pop_pc([random_draw()], X.numpy(), mean),
        TypeError,
        "the data must be a torch.Tensor, got ndarray.",
    ),
    "a vector of data": (
        lambda: pop_pc([random_draw()], X[:, 0], mean),
        ValueError,
        "the data must have shape (N, G), not empty, got (20,).",
    ),
    "no rows": (
        lambda: pop_pc([random_draw()], X[:0], mean),
        ValueError,
        "the data must have shape (N, G), not empty, got (0, 3).",
    ),
    "integer data": (
        lambda: pop_pc([random_draw()], X.long(), mean),
        TypeError,
        "the data must be floating point, got torch.int64; use x.float().",
    ),
    "NaN in the data": (
        lambda: pop_pc([random_draw()], NAN, mean),
        ValueError,
        "the data have 1 NaN or infinite entries of 60.",
    ),
    "infinite data": (
        lambda: ppc([random_draw()], INFINITE, mean),
        ValueError,
        "the data have 6 NaN or infinite entries of 60.",
    ),
    "another number of features": (
        lambda: pop_pc([random_draw()], X[:, :2], mean),
        ValueError,
        "replicate() of draw 0 must return the shape of the data, (20, 2), got (20, 3).",
    ),
    "another number of rows": (
        lambda: pop_pc([random_draw()], torch.cat([X, X]), mean),
        ValueError,
        "replicate() of draw 0 must return the shape of the data, (40, 3), got (20, 3).",
    ),
    "numpy replicates": (
        lambda: pop_pc([FunctionDraw(X.numpy, random_draw().likelihood)], X, mean),
        TypeError,
        "replicate() of draw 0 must return a torch.Tensor, got ndarray.",
    ),
    "replicates on another device": (
        lambda: pop_pc([FunctionDraw(lambda: X.to("meta"), random_draw().likelihood)], X, mean),
        ValueError,
        "replicate() of draw 0 must return data on cpu, got meta.",
    ),
    "NaN in a replicate": (
        lambda: pop_pc(
            [fixed_draw(X), fixed_draw(X), fixed_draw(NAN)], X, lambda x, draw: (x == 0).sum()
        ),
        ValueError,
        "replicate() returned NaN in draw 1.",
    ),
    "discrepancy that returns a number": (
        lambda: pop_pc([random_draw()], X, lambda x, draw: x.mean().item()),
        TypeError,
        "the discrepancy must return a torch.Tensor, got float.",
    ),
    "discrepancy that returns a matrix": (
        lambda: pop_pc([random_draw()], X, lambda x, draw: x**2),
        ValueError,
        "the discrepancy must return a scalar or one value per feature or unit, got shape (20, 3).",
    ),
    "discrepancy that returns nothing": (
        lambda: pop_pc([random_draw()], X, lambda x, draw: x[0, :0]),
        ValueError,
        "the discrepancy must return a scalar or one value per feature or unit, got shape (0,).",
    ),
    "discrepancy that changes shape": (
        lambda: pop_pc([random_draw()], X, lambda x, draw: x[0] if x is X else x.mean()),
        ValueError,
        "the discrepancy changed shape: first (3,), then ().",
    ),
    "discrepancy that is NaN for the data": (
        lambda: pop_pc([random_draw()], X, lambda x, draw: x.mean() * (math.nan if x is X else 1)),
        ValueError,
        "the discrepancy of the data is NaN (draw 0).",
    ),
    "discrepancy that is NaN for a replicate": (
        lambda: pop_pc([random_draw()], X, lambda x, draw: x[0] * (1 if x is X else math.nan)),
        ValueError,
        "the discrepancy of replicate 0 is NaN.",
    ),
    "no reference draws": (
        lambda: pop_pc([random_draw()], X, mean, kind="predictive", n_reference=0),
        ValueError,
        "n_reference must be at least 1, got 0.",
    ),
    "size of the fit": (
        lambda: pop_pc([random_draw()], X, mean, n_obs=0),
        ValueError,
        "n_obs must be at least 1, got 0.",
    ),
    "unknown local mode": (
        lambda: pop_pc(Unending(local="both"), X, mean),
        ValueError,
        "draws.local must be 'prior', 'posterior', 'observed' or 'covariates', got 'both'.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        call()
