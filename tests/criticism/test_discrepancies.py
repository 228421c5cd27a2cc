import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, discrepancies

# Every row is computed by hand; the draw is Normal(1, sd 2) for every entry.
SMALL = [[0.0, 2.0], [2.0, 2.0], [4.0, 2.0]]  # (x - 1)^2 sums to 14
TRIPLE = [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]  # correlations 0, sqrt(3)/2, -1/2
TREND = [[0.0, 0.0, 0.0, 3.0], [2.0, 8.0, 0.0, 3.0]]  # means 1, 4, variances 1, 16; two constant
CASES = {
    "mean_negative_log_likelihood": (SMALL, math.log(2 * math.pi) + 2 * math.log(2) + 14 / 24),
    "chi_square": (SMALL, 14 / 24),
    "residual_correlation": (TRIPLE, math.sqrt(2 * (3 / 4 + 1 / 4) / 6)),
    "mean": (SMALL, 2.0),
    "maximum": (SMALL, 4.0),
    "quantile(0.9)": (SMALL, 3.0),
    "library_size": (SMALL, float(np.std([math.log(3), math.log(5), math.log(7)]))),
    "mean_variance_trend": (TREND, 2.0),
    "feature_variance": (SMALL, [8 / 3, 0.0]),
    "zero_fraction": (SMALL, [1 / 3, 0.0]),
}


def find(name):
    if name.startswith("quantile"):
        return discrepancies.quantile(float(name[9:-1]))
    return getattr(discrepancies, name)


def normal_draw(x, mean=1.0, scale=2.0):
    law = Independent(Normal(torch.full_like(x, mean), scale), 1)
    return FunctionDraw(law.sample, lambda data: law)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_value_computed_by_hand(name, dtype, device):
    data, expected = CASES[name]
    x = torch.tensor(data, dtype=dtype, device=device)
    value = find(name)(x, normal_draw(x))
    assert find(name).__name__ == name
    assert value.dtype == dtype
    assert value.device == x.device
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert value.tolist() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_constant_data_give_finite_values(name, device):
    x = torch.full((7, 3), 0.1, device=device)
    value = find(name)(x, normal_draw(x))
    assert value.isfinite().all()
    if name in ("feature_variance", "residual_correlation", "mean_variance_trend"):
        assert (value == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_single_row_and_single_feature_give_finite_values(name):
    for shape in ((1, 4), (5, 1), (1, 1)):
        x = torch.rand(shape)
        assert find(name)(x, normal_draw(x)).isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_permuted_rows_change_nothing(name):
    x = torch.rand(40, 6, dtype=torch.float64)
    draw, order = normal_draw(x), torch.randperm(40)
    assert find(name)(x[order], draw).tolist() == pytest.approx(find(name)(x, draw).tolist())


@pytest.mark.parametrize(("n_obs", "n_features"), [(50, 8), (8, 50)])
def test_residual_correlation_equals_numpy_for_either_gram_matrix(n_obs, n_features):
    x = torch.randn(n_obs, n_features, dtype=torch.float64).cumsum(1)
    scale = torch.rand(n_features, dtype=torch.float64) + 0.5
    law = Independent(Normal(torch.zeros_like(x), scale), 1)
    value = discrepancies.residual_correlation(x, FunctionDraw(law.sample, lambda data: law))
    correlation = np.corrcoef((x / scale).numpy().T)
    off_diagonal = correlation[~np.eye(n_features, dtype=bool)]
    assert value.item() == pytest.approx(math.sqrt(np.mean(off_diagonal**2)), rel=1e-10)


def test_residual_correlation_ignores_shift_and_scale_of_features():
    x = torch.randn(30, 5, dtype=torch.float64)
    draw = normal_draw(x)
    moved = x * torch.tensor([1.0, 2, 3, 4, 5]) + 7
    expected = discrepancies.residual_correlation(x, draw).item()
    assert discrepancies.residual_correlation(moved, draw).item() == pytest.approx(expected)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.77, 1.0])
def test_quantile_equals_numpy(q):
    x = torch.randn(13, 7, dtype=torch.float64)
    value = discrepancies.quantile(q)(x, normal_draw(x)).item()
    assert value == pytest.approx(np.quantile(x.numpy(), q), abs=1e-14)


def test_quantile_takes_more_entries_than_torch_quantile():
    x = torch.arange(2**24 + 2, dtype=torch.float64).reshape(2, -1)
    assert discrepancies.quantile(0.5)(x, None).item() == (2**24 + 1) / 2


def test_mean_variance_trend_equals_polyfit_on_varying_features():
    x = torch.poisson(torch.rand(200, 30, dtype=torch.float64) * 20)
    x[:, 4] = 0
    kept = np.delete(x.numpy(), 4, axis=1)
    slope = np.polyfit(np.log(kept.mean(0)), np.log(kept.var(0)), 1)[0]
    value = discrepancies.mean_variance_trend(x, normal_draw(x)).item()
    assert value == pytest.approx(slope, rel=1e-10)


def test_mean_variance_trend_is_one_for_poisson_and_steeper_for_overdispersed_counts():
    rate = torch.linspace(0.5, 50, 200, dtype=torch.float64).expand(4000, 200)
    counts = torch.poisson(rate)
    assert discrepancies.mean_variance_trend(counts, None).item() == pytest.approx(1, abs=0.01)
    wide = torch.poisson(rate * torch.distributions.Gamma(2.0, 2.0).sample(rate.shape))
    assert discrepancies.mean_variance_trend(wide, None).item() > 1.5


def test_chi_square_is_infinite_only_where_a_certain_prediction_fails():
    x = torch.tensor([[1.0, 2.0]])
    law = torch.distributions.Independent(Normal(x, torch.zeros(1, 2), validate_args=False), 1)
    draw = FunctionDraw(law.sample, lambda data: law)
    assert discrepancies.chi_square(x, draw).item() == 0
    assert discrepancies.chi_square(x + 1, draw).item() == math.inf


def test_library_size_refuses_negative_row_totals():
    with pytest.raises(ValueError, match="needs non-negative row totals, got -3"):
        discrepancies.library_size(torch.tensor([[-1.0, -2.0], [1.0, 1.0]]), None)


@pytest.mark.parametrize("q", [-0.1, 1.5, math.nan])
def test_quantile_refuses_what_is_no_probability(q):
    with pytest.raises(ValueError, match=r"q must be a probability in \[0, 1\], got"):
        discrepancies.quantile(q)
