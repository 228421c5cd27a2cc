import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, discrepancies, pop_pc
from probinterp.criticism.discrepancies import check_discrepancy, discrepancy

X = torch.tensor([[1.0, 4.0], [3.0, 0.0]])


def draw():
    law = Independent(Normal(torch.zeros(2, 2), 1.0), 1)
    return FunctionDraw(law.sample, lambda x: law)


def test_one_line_makes_a_discrepancy():
    spread = discrepancy(lambda x, draw: x.amax() - x.amin(), name="range")
    assert spread.__name__ == "range"
    assert check_discrepancy(spread, X, draw()).item() == 4
    result = pop_pc([draw()] * 3, X, spread)
    assert result.discrepancy == "range"
    assert result.heldout.item() == 4


def test_decorators_with_and_without_arguments():
    @discrepancy
    def plain(x, draw):
        """The smallest entry."""
        return x.amin()

    @discrepancy(axis="feature", labels=["a", "b"])
    def named(x, draw):
        return x.amin(0)

    assert (plain.__name__, plain.__doc__) == ("plain", "The smallest entry.")
    assert not hasattr(plain, "axis")
    assert (named.__name__, named.axis, named.labels) == ("named", "feature", ("a", "b"))
    assert check_discrepancy(plain, X, draw()).item() == 0
    assert check_discrepancy(named, X, draw()).tolist() == [1, 0]


def test_objects_that_can_be_called_are_named_after_their_class():
    class Range:
        def __call__(self, x, draw):
            return x.amax() - x.amin()

    assert discrepancy(Range()).__name__ == "Range"
    assert check_discrepancy(Range(), X, draw()).item() == 4


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x, draw: 3.0, TypeError, "odd must return a torch.Tensor, got float"),
        (lambda x, draw: x, ValueError, r"a scalar or a vector.*got shape \(2, 2\)"),
        (lambda x, draw: x[0, :0], ValueError, r"at least one value, got shape \(0,\)"),
        (lambda x, draw: (x == 0).sum(), TypeError, "floating point numbers, got torch.int64"),
    ],
)
def test_every_call_checks_what_is_returned(function, error, message):
    odd = discrepancy(function, name="odd")
    with pytest.raises(error, match=message):
        odd(X, draw())
    function.__name__ = "odd"
    with pytest.raises(error, match=message):
        check_discrepancy(function, X, draw())


def test_labels_must_fit_the_values():
    short = discrepancy(lambda x, draw: x.amin(0), name="short", axis="feature", labels=["a"])
    with pytest.raises(ValueError, match="short has 1 labels for 2 values"):
        short(X, draw())


def test_random_functions_are_refused():
    def noisy(x, draw):
        return x.mean() + torch.rand(())

    with pytest.raises(ValueError, match="noisy drew random numbers from torch's global generator"):
        check_discrepancy(noisy, X, draw())
    generator = np.random.default_rng(0)

    def noisy_otherwise(x, draw):
        return x.mean() + generator.normal()

    with pytest.raises(ValueError, match="noisy_otherwise returned different values"):
        check_discrepancy(noisy_otherwise, X, draw())


def test_a_fixed_generator_of_its_own_is_pure():
    def projected(x, draw):
        direction = torch.randn(2, generator=torch.Generator().manual_seed(3))
        return (x @ direction).square().mean()

    assert check_discrepancy(projected, X, draw()).item() > 0


def test_functions_that_change_their_data_are_refused():
    x = X.clone()

    def centred(x, draw):
        x -= x.mean(0)
        return x.square().mean()

    with pytest.raises(ValueError, match="centred changed its data in place"):
        check_discrepancy(centred, x, draw())
    assert torch.equal(x, X)


def test_missing_values_are_refused():
    with pytest.raises(ValueError, match="ratio returned NaN for 1 of its values"):
        check_discrepancy(
            discrepancy(lambda x, draw: x.amin(0) / 0, name="ratio", axis="feature"), X, draw()
        )


@pytest.mark.parametrize(("axis", "length"), [("feature", 2), ("unit", 3)])
def test_vectors_must_have_one_value_per_feature_or_unit(axis, length):
    x = torch.rand(3, 2)
    wrong = discrepancy(lambda x, draw: x.new_ones(4), name="wrong", axis=axis)
    with pytest.raises(
        ValueError, match=rf"one value per {axis}: expected shape \({length},\), got \(4,\)"
    ):
        check_discrepancy(wrong, x, draw())


@pytest.mark.gpu
def test_values_must_stay_on_the_device_of_the_data():
    with pytest.raises(ValueError, match="must return its value on cuda:0, got cpu"):
        check_discrepancy(lambda x, draw: x.mean().cpu(), X.cuda(), draw())


def test_data_must_be_a_matrix_of_floating_point_numbers():
    with pytest.raises(ValueError, match=r"shape \(N, G\), got shape \(3,\)"):
        check_discrepancy(discrepancies.mean, torch.rand(3), draw())
    with pytest.raises(TypeError, match="floating point, got torch.int64"):
        check_discrepancy(discrepancies.mean, torch.ones(3, 2, dtype=torch.long), draw())


def test_what_is_no_description_is_refused():
    with pytest.raises(ValueError, match="axis must be one of feature, unit, group or None, got"):
        discrepancy(lambda x, draw: x.mean(), axis="gene")
    with pytest.raises(ValueError, match="say with axis= what they stand for"):
        discrepancy(lambda x, draw: x.mean(), labels=["a"])
    with pytest.raises(TypeError, match="a function of x and a draw, got a str"):
        discrepancy("mean")
