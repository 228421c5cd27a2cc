"""The closed-form correction of checks of point estimates against hand-computed numbers."""

import math
import warnings

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, PointEstimateWarning, pop_pc, ppc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood
from probinterp.criticism.point_estimates import analytic_p, analytic_z


def draw_of(law):
    return FunctionDraw(law.sample, lambda x: law)


def constant(value):
    """Draw that replicates rows whose discrepancy is known."""
    return FunctionDraw(lambda: torch.full((8, 4), value), lambda x: None)


def first_entry(x, draw):
    return x[0, 0]


def test_correction_equals_numbers_worked_out_by_hand():
    draws = [constant(value) for value in (0.0, 0.0, 2.0, 4.0)]  # the first is the reference
    result = pop_pc(draws, torch.full((8, 4), 5.0), first_entry, n_obs=32)
    assert result.z.item() == 1.5  # (5 - 2) / 2
    # bias 10 / 32 sqrt(2 8 / 4) = .625, inflation sqrt(1 + 8 / 32) = sqrt(1.25)
    assert analytic_z(result, 10).item() == pytest.approx(0.875 / math.sqrt(1.25), rel=1e-12)
    assert analytic_p(result, 10).item() == pytest.approx(
        2 * norm.sf(0.875 / math.sqrt(1.25)), rel=1e-12
    )
    assert analytic_z(result, 0).item() == pytest.approx(1.5 / math.sqrt(1.25), rel=1e-12)


class PointDraws(list):
    point_estimate = True


def test_correction_repairs_the_check_of_a_fitted_mean_and_scale():
    """Independent normal features, all means and scales estimated: dim = 2 G."""
    generator = torch.Generator().manual_seed(3)
    raw, corrected = [], []
    for seed in range(100):
        x = torch.randn(200, 10, generator=generator, dtype=torch.float64)
        x_obs, x_new = x.split(100)
        law = Independent(Normal(x_obs.mean(0), x_obs.std(0, correction=0)), 1).expand((100,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PointEstimateWarning)
            draws = PointDraws(draw_of(law) for _ in range(61))
            result = pop_pc(draws, x_new, mean_negative_log_likelihood, n_obs=100, seed=seed)
        raw.append(result.z)
        corrected.append(analytic_z(result, 20))
    raw, corrected = torch.stack(raw), torch.stack(corrected)
    bias = 20 / 100 * math.sqrt(2 * 100 / 10)  # .894
    assert raw.mean().item() == pytest.approx(bias, abs=4 * math.sqrt(2 / 100))
    assert corrected.mean().abs().item() < 4 / math.sqrt(100)
    assert corrected.std().item() == pytest.approx(1, abs=0.25)
    assert (raw.abs() > 1.96).double().mean() > 0.15
    assert (corrected.abs() > 1.96).double().mean() < 0.12


def test_mistakes_are_named():
    draws, x = [constant(0.0), constant(1.0)], torch.zeros(8, 4)
    with pytest.raises(ValueError, match="the correction needs n_obs"):
        analytic_z(pop_pc(draws, x, first_entry), 3)
    with pytest.raises(ValueError, match="is for held-out checks, got check='ppc'"):
        analytic_z(ppc(draws, x, first_entry), 3)
    with pytest.raises(ValueError, match="dim must be the number of free parameters, got -1"):
        analytic_p(pop_pc(draws, x, first_entry, n_obs=4), -1)
