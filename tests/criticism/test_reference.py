import re

import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, PredictiveMixture, pop_pc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood
from probinterp.criticism.reference import find_reference


def draw_at(mean):
    law = Independent(Normal(torch.full((3, 1), float(mean)), 1.0), 1)
    return FunctionDraw(law.sample, lambda x: law)


class Draws(list):
    """A list of draws that may carry attributes."""


def test_plugin_takes_the_argument_then_the_attribute_then_the_first_draw():
    draws, kept, passed = Draws(map(draw_at, range(4))), draw_at(9), draw_at(8)
    found = find_reference(draws, "plugin", None, 1)
    assert found.draw is draws[0]
    assert list(found.replicating) == draws[1:]
    assert (found.source, found.also_replicates) == ("the first draw, set aside", False)
    draws.reference = kept
    found = find_reference(draws, "plugin", None, 1)
    assert found.draw is kept
    assert list(found.replicating) == draws
    found = find_reference(draws, "plugin", passed, 1)
    assert found.draw is passed
    assert found.source == "argument"


def test_a_single_plugin_draw_serves_as_both():
    only = draw_at(0)
    found = find_reference([only], "plugin", None, 1)
    assert found.draw is only
    assert list(found.replicating) == [only]
    assert found.also_replicates


def test_predictive_takes_the_argument_then_the_attribute_then_the_first_draws():
    draws, kept, passed = Draws(map(draw_at, range(4))), [draw_at(9)], [draw_at(8), draw_at(7)]
    found = find_reference(draws, "predictive", None, 3)
    assert isinstance(found.draw, PredictiveMixture)
    assert found.draw.draws == tuple(draws[:3])
    assert list(found.replicating) == draws[3:]
    assert found.source == "the first 3 draws, set aside"
    draws.reference_draws = kept
    found = find_reference(draws, "predictive", None, 3)
    assert found.draw.draws == tuple(kept)
    assert list(found.replicating) == draws
    assert find_reference(draws, "predictive", passed, 3).draw.draws == tuple(passed)


def test_realised_evaluates_at_each_draw():
    draws = [draw_at(0), draw_at(1)]
    found = find_reference(iter(draws), "realised", None, 3)
    assert found.draw is None
    assert list(found.replicating) == draws


def check(draws, **options):
    return pop_pc(draws, torch.zeros(3, 1), mean_negative_log_likelihood, **options)


BAD = {
    "realised with a reference": (
        lambda: check([draw_at(0)], kind="realised", reference=draw_at(0)),
        ValueError,
        "kind='realised' evaluates d at every draw; it takes no reference.",
    ),
    "plug-in with a sequence": (
        lambda: check([draw_at(0)], reference=[draw_at(0)]),
        TypeError,
        "kind='plugin' needs one reference draw with replicate() and likelihood(x), got a list.",
    ),
    "predictive with one draw": (
        lambda: check([draw_at(0)], kind="predictive", reference=draw_at(0)),
        TypeError,
        "kind='predictive' needs a sequence of reference draws, got a FunctionDraw.",
    ),
    "predictive with something else inside": (
        lambda: check([draw_at(0)], kind="predictive", reference=[draw_at(0), 3]),
        TypeError,
        "reference 1 is a int.",
    ),
    "predictive without references": (
        lambda: check([draw_at(0)], kind="predictive", reference=[]),
        ValueError,
        "PredictiveMixture needs at least one reference draw, got none.",
    ),
    "too few draws to set aside": (
        lambda: check([draw_at(0)] * 5, kind="predictive"),
        ValueError,
        "kind='predictive' sets 32 draws aside as reference (n_reference), got 5 draws in all.",
    ),
    "all draws set aside": (
        lambda: check([draw_at(k) for k in range(5)], kind="predictive", n_reference=5),
        ValueError,
        "draws is empty, or all of them were set aside: there is nothing to replicate from.",
    ),
    "no draws at all": (
        lambda: check([]),
        ValueError,
        "draws is empty: there is nothing to replicate from.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_reference(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_reference_draw_must_not_replicate():
    draws = [draw_at(k) for k in range(5)]
    with pytest.raises(ValueError, match="replicating draw 2 is also a reference draw; a predic"):
        check(draws, kind="predictive", reference=[draws[2], draw_at(9)])
