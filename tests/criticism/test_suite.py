import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, SequentialStop, pop_pc, pop_pc_suite
from probinterp.criticism.discrepancies import (
    chi_square,
    feature_variance,
    library_size,
    maximum,
    mean,
    mean_negative_log_likelihood,
)

SUITE = {
    "mean": mean,
    "nll": mean_negative_log_likelihood,
    "chi square": chi_square,
    "variance": feature_variance,
}


class CountingDraw:
    """Counts how often it is asked."""

    def __init__(self, location=0.0):
        self.law = Independent(Normal(torch.full((12, 3), location), 1.0), 1)
        self.n_replicates = self.n_likelihoods = 0

    def replicate(self):
        self.n_replicates += 1
        return self.law.sample()

    def likelihood(self, x):
        self.n_likelihoods += 1
        return self.law


@pytest.mark.parametrize("kind", ["plugin", "predictive", "realised"])
@pytest.mark.filterwarnings("ignore:The regime number")
def test_a_suite_gives_what_each_check_gives_alone(kind):
    x = torch.randn(12, 3)
    draws = [CountingDraw(k / 50) for k in range(50)]
    together = pop_pc_suite(draws, x, SUITE, kind=kind, seed=3, n_reference=5)
    assert list(together) == list(SUITE)
    for name, discrepancy in SUITE.items():
        alone = pop_pc(draws, x, discrepancy, kind=kind, seed=3, n_reference=5)
        for field in ("heldout", "replicated", "uniform", "p_rank"):
            assert torch.equal(getattr(together[name], field), getattr(alone, field))
        assert together[name].discrepancy == name
        assert together[name].regime == alone.regime


def test_replicates_and_likelihoods_are_shared():
    draws, reference = [CountingDraw() for _ in range(20)], CountingDraw()
    pop_pc_suite(draws, torch.randn(12, 3), SUITE, reference=reference)
    assert [d.n_replicates for d in draws] == [1] * 20
    assert [d.n_likelihoods for d in draws] == [0] * 20
    assert reference.n_likelihoods <= 21 + 1  # each replicate once, the data once


def test_axis_and_labels_come_from_the_discrepancy():
    def by_group(x, draw):
        return torch.stack([x[:6].mean(), x[6:].mean()])

    by_group.axis, by_group.labels = "group", ("left", "right")
    result = pop_pc([CountingDraw() for _ in range(50)], torch.randn(12, 3), by_group)
    assert (result.axis, result.labels) == ("group", ("left", "right"))
    assert set(result.ranking().labels) == {"left", "right"}
    assert "groups" in str(result.verdict())


class StackedDraws:
    """Replicates in one stack, handed over in chunks."""

    def __init__(self, stack):
        self.stack, self.chunks = stack, []

    def __len__(self):
        return len(self.stack)

    def __iter__(self):
        law = Independent(Normal(torch.zeros(self.stack.shape[1:]), 1.0), 1)
        return iter([FunctionDraw(lambda r=r: r, lambda x: law) for r in self.stack])

    def replicate_chunk(self, start, stop):
        self.chunks.append((start, stop))
        return self.stack[start:stop]


def uses_control_flow(x, draw):
    return x.mean() if x.sum().item() > 0 else x.amax()


@pytest.mark.parametrize("discrepancy", [*SUITE.values(), maximum, uses_control_flow])
@pytest.mark.parametrize(("kind", "first"), [("plugin", 1), ("predictive", 4)])
def test_stacked_replicates_give_the_values_of_single_ones(discrepancy, kind, first):
    draws, x = StackedDraws(torch.randn(30, 12, 3)), torch.randn(12, 3)
    stacked = pop_pc(draws, x, discrepancy, kind=kind, n_reference=4)
    single = pop_pc(list(draws), x, discrepancy, kind=kind, n_reference=4)
    assert draws.chunks == [(first, 30)]
    torch.testing.assert_close(stacked.replicated, single.replicated, rtol=1e-5, atol=1e-6)
    assert torch.equal(stacked.uniform, single.uniform)


def test_stacks_of_the_wrong_shape_are_refused():
    draws = StackedDraws(torch.randn(30, 12, 4))
    with pytest.raises(ValueError, match=r"replicate_chunk\(1, 30\) must return the shape"):
        pop_pc(draws, torch.randn(12, 3), mean)


@pytest.mark.parametrize("suite", [{}, [mean], None])
def test_a_suite_must_name_its_discrepancies(suite):
    with pytest.raises(ValueError, match="suite must map at least one name to a discrepancy"):
        pop_pc_suite([CountingDraw()], torch.randn(12, 3), suite)


def test_what_is_not_a_discrepancy_is_named():
    with pytest.raises(TypeError, match="got int for 'nll'"):
        pop_pc_suite([CountingDraw()], torch.randn(12, 3), {"mean": mean, "nll": 3})


def coefficient_of_variation(x, draw):
    return x.std() / (1 + x.mean())


@pytest.mark.parametrize("discrepancy", [coefficient_of_variation, library_size])
def test_equal_data_tie_however_the_replicates_are_handed_over(discrepancy):
    """Sums over one data set and over a stack of them differ in their last digit.

    Sorted binary counts are equal where their totals are: as many ties as in exact arithmetic.
    """
    generator = torch.Generator().manual_seed(0)
    data = torch.bernoulli(torch.full((200, 12, 1), 0.3), generator=generator).double()
    data = data.sort(1).values
    for x, stack in ((data[0], data[1:]), (data[1], data[2:4])):  # the latter: a stack of one
        result = pop_pc(StackedDraws(stack), x, discrepancy)
        expected = (stack[1:].sum((1, 2)) == x.sum()).sum()
        assert (result.replicated == result.heldout).sum() == expected


def test_a_sequential_stop_looks_into_stacks():
    draws = StackedDraws(torch.randn(5000, 12, 3))
    result = pop_pc(draws, torch.full((12, 3), 5.0), mean, stop=SequentialStop())
    assert result.n_draws < 1000
    assert max(stop for _, stop in draws.chunks) < 1000


@pytest.mark.parametrize("stacked", [True, False])
def test_a_discrepancy_that_changes_the_data_is_refused(stacked):
    draws = StackedDraws(torch.randn(30, 12, 3))
    with pytest.raises(ValueError, match="the discrepancy changed its data in place"):
        pop_pc(
            draws if stacked else list(draws),
            torch.randn(12, 3),
            lambda x, d: x.clamp_(min=0).sum(),
        )


def test_data_that_know_no_changes_can_be_checked():
    with torch.inference_mode():
        draws, x = StackedDraws(torch.randn(30, 12, 3)), torch.randn(12, 3)
        assert pop_pc(draws, x, mean).n_draws == 29


@pytest.mark.filterwarnings("ignore:The regime number")
def test_a_discrepancy_may_use_the_parameters_of_the_draws():
    class Located(CountingDraw):
        def __init__(self, location):
            super().__init__(location)
            self.location = location

    def error(x, draw):
        return (x.mean() - draw.location).abs()

    result = pop_pc(
        [Located(float(k)) for k in range(5)], torch.ones(12, 3), error, kind="realised"
    )
    assert result.heldout.tolist() == [1, 0, 1, 2, 3]
