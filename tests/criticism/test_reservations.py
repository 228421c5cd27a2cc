"""Which checks warn, which only take a note, and which do neither."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import (
    FunctionDraw,
    HeldoutSizeWarning,
    LocalDoubleUseWarning,
    PointEstimateWarning,
    RegimeWarning,
    pop_pc,
    ppc,
)
from probinterp.criticism.discrepancies import feature_variance, mean_negative_log_likelihood


class Draws:
    """Draws of a normal location whose posterior has the given standard deviation."""

    def __init__(self, spread=0.0, n_draws=60, **attributes):
        self.spread, self.n_draws = spread, n_draws
        self.__dict__ |= attributes

    def __iter__(self):
        for _ in range(self.n_draws):
            law = Independent(Normal(self.spread * torch.randn(1).expand(20, 3), 1.0), 1)
            yield FunctionDraw(law.sample, lambda x, law=law: law)


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))


def check(draws, **options):
    return pop_pc(draws, X, mean_negative_log_likelihood, **options)


def test_a_full_posterior_gives_neither_warning_nor_note():
    result = check(Draws(0.1, local="prior", point_estimate=False, n_obs=30))
    assert result.calibrated
    assert result.notes == ()
    assert (result.local, result.n_obs) == ("prior", 30)


def test_point_estimates_warn_unless_the_held_out_set_is_small():
    with pytest.warns(HeldoutSizeWarning, match="refits; here n_new = 20 and n_obs = 199"):
        result = check(Draws(point_estimate=True, n_obs=199))
    assert not result.calibrated
    with pytest.warns(PointEstimateWarning, match="Pass n_obs to judge by how much."):
        assert not check(Draws(point_estimate=True)).calibrated
    small = check(Draws(point_estimate=True), n_obs=200)
    assert small.calibrated
    assert small.notes == ("Global parameters are point estimates.",)


def test_the_argument_n_obs_overrides_the_attribute():
    assert check(Draws(point_estimate=True, n_obs=20), n_obs=500).n_obs == 500


def test_posterior_locals_warn_and_are_labelled():
    with pytest.warns(LocalDoubleUseWarning, match="blind to a wrong prior of the latents"):
        result = check(Draws(local="posterior"))
    assert result.local == "posterior"
    assert not result.calibrated
    assert result.summary()["local"] == "posterior"


def test_the_classical_check_does_not_warn():
    """Its label says enough; posterior locals are what it means."""
    result = ppc(Draws(local="posterior", point_estimate=True), X, mean_negative_log_likelihood)
    assert not result.calibrated
    assert len(result.notes) == 2


@pytest.mark.parametrize(
    ("spread", "text"),
    [(0.2, "p is biased towards misfit"), (1.0, "the check is power-limited or degenerate")],
)
def test_realised_checks_warn_by_their_regime_number(spread, text):
    """Var E = spread^2, E Var = 1: r = spread^2 sqrt(120), .44 and 10.95."""
    with pytest.warns(RegimeWarning, match=text):
        result = check(Draws(spread, n_draws=1500), kind="realised")
    assert result.regime == pytest.approx(spread**2 * math.sqrt(120), rel=0.15)
    assert not result.calibrated
    assert (result.verdict().decision == "no verdict") == (spread == 1.0)


def test_realised_checks_are_silent_inside_the_regime():
    result = check(Draws(0.09, n_draws=400), kind="realised")
    assert 0.05 < result.regime < 0.13
    assert result.calibrated


def test_realised_check_of_one_draw_has_no_regime_number():
    with pytest.warns(RegimeWarning, match="needs at least two draws"):
        assert check(Draws(n_draws=1), kind="realised").regime is None


def test_ties_and_resolution_are_noted():
    counts = torch.poisson(torch.full((20, 3), 0.1))
    law = Independent(Normal(torch.zeros(20, 3), 1.0), 1)
    draws = [FunctionDraw(lambda: counts, lambda x: law)] * 41
    result = pop_pc(draws, counts, feature_variance)
    assert result.notes == (
        "3 of 3 values are tied with replicates: p_value counts ties as extreme, p_randomised "
        "breaks them.",
        "With 40 draws, 3 of 3 values must be at the smallest p-value before any is rejected at "
        "a false discovery rate of .05; rank by z or draw more.",
    )


def test_a_single_draw_is_noted():
    result = check(Draws(n_draws=1))
    assert result.notes == ("A single draw serves as reference and replicates.",)
    assert not result.calibrated


def test_warnings_point_to_the_caller():
    with pytest.warns(LocalDoubleUseWarning) as caught:
        check(Draws(local="posterior"))
    assert caught[0].filename == __file__


def test_ties_of_a_single_value_are_noted_in_the_singular():
    draws = [FunctionDraw(lambda: torch.ones(2, 2), lambda x: None)] * 500
    note = "tied with replicates: p_value counts ties as extreme, p_randomised breaks them."
    result = pop_pc(draws, torch.ones(2, 2), lambda x, draw: x.mean())
    assert result.notes[-1] == f"The value of the data is {note}"
    result = pop_pc(draws, torch.tensor([[1.0, 2.0]] * 2), lambda x, draw: x[0])
    assert result.notes[-1] == f"1 of 2 values is {note}"


@pytest.mark.parametrize("bare", [list, tuple, iter])
def test_a_list_of_draws_is_as_little_calibrated_as_its_draws(bare):
    """The label of a collection is lost in a list; that of the draws is not."""
    law = Independent(Normal(torch.zeros(20, 3), 1.0), 1)
    labelled = [FunctionDraw(law.sample, lambda x: law, "posterior") for _ in range(60)]
    with pytest.warns(LocalDoubleUseWarning):
        result = check(bare(labelled))
    assert (result.local, result.calibrated, result.n_draws) == ("posterior", False, 59)
