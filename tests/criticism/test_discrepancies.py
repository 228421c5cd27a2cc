import math
import pickle

import numpy as np
import pytest
import torch
from joblib import wrap_non_picklable_objects
from scipy import stats
from torch.distributions import Independent, Normal

from probinterp.criticism import FunctionDraw, discrepancies, pop_pc

# Every row is computed by hand; the draw is Normal(1, sd 2) for every entry.
SMALL = [[0.0, 2.0], [2.0, 2.0], [4.0, 2.0]]  # (x - 1)^2 sums to 14
SKEWED = [[0.0, 0.0], [0.0, 4.0]]  # mean 1, central moments 3, 6, 21
TRIPLE = [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]  # correlations 0, sqrt(3)/2, -1/2
FLIPPED = [[0.0, 1.0, 2.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # the same with units for features
TREND = [[0.0, 0.0, 0.0, 3.0], [2.0, 8.0, 0.0, 3.0]]  # means 1, 4, variances 1, 16; two constant
ORDERED = [[1.0, 1.0], [2.0, -1.0], [3.0, 1.0], [4.0, -1.0]]  # lag 1: 1/4, -3/4; lag 2: -.3, 1/2
WORDS = [[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]  # two words of one document each, one of both
GROUPS = ["a", "a", "b"]  # of the rows of SMALL: entries 0 2 2 2 and 4 2
CONSTANT = math.log(2 * math.pi) + 2 * math.log(2)  # of the log density of a row of SMALL
DEPTH = float(np.corrcoef([0, 1, 2], np.log([3, 5, 7]))[0, 1])

nll, chi_square = discrepancies.mean_negative_log_likelihood, discrepancies.chi_square
words_of = discrepancies.word_document_mutual_information
instantaneous = discrepancies.instantaneous_mutual_information
ALL = [
    (nll, SMALL, CONSTANT + 14 / 24),
    (chi_square, SMALL, 14 / 24),
    (discrepancies.mean_squared_residual, SMALL, 14 / 6),
    (discrepancies.reconstruction_error, SMALL, 14 / 8),
    (discrepancies.pit_uniformity, SMALL, stats.norm.cdf(0.5) - 1 / 6),
    (discrepancies.residual_skewness, SKEWED, 6 / 3**1.5),
    (discrepancies.residual_kurtosis, SKEWED, 21 / 9 - 3),
    (discrepancies.residual_correlation, TRIPLE, math.sqrt(2 * (3 / 4 + 1 / 4) / 6)),
    (discrepancies.unit_residual_correlation, FLIPPED, math.sqrt(2 * (3 / 4 + 1 / 4) / 6)),
    (discrepancies.library_size_correlation, SMALL, DEPTH / math.sqrt(2)),
    (discrepancies.residual_autocorrelation(1), ORDERED, (1 / 4 - 3 / 4) / 2),
    (discrepancies.autocorrelation(1), ORDERED, (1 / 4 - 3 / 4) / 2),
    (discrepancies.autocorrelation(2), ORDERED, (-0.3 + 0.5) / 2),
    (discrepancies.mean, SMALL, 2.0),
    (discrepancies.maximum, SMALL, 4.0),
    (discrepancies.minimum, SMALL, 0.0),
    (discrepancies.quantile(0.9), SMALL, 3.0),
    (discrepancies.second_moment, SMALL, 32 / 6),
    (discrepancies.third_moment, SMALL, 96 / 6),
    (discrepancies.variance, SMALL, 32 / 6 - 4),
    (discrepancies.skewness, SKEWED, 6 / 3**1.5),
    (discrepancies.kurtosis, SKEWED, 21 / 9 - 3),
    (discrepancies.library_size, SMALL, float(np.std(np.log([3, 5, 7])))),
    (discrepancies.mean_variance_trend, TREND, 2.0),
    (discrepancies.feature_variance, SMALL, [8 / 3, 0.0]),
    (discrepancies.index_of_dispersion, SMALL, [4 / 3, 0.0]),
    (discrepancies.zero_fraction, SMALL, [1 / 3, 0.0]),
    (discrepancies.grand_mean(GROUPS), SMALL, (1.5 + 3) / 2),
    (discrepancies.maximum_of_group_means(GROUPS), SMALL, 3.0),
    (discrepancies.quantile_of_group_means(GROUPS), SMALL, 1.5 + 0.75 * 1.5),
    (discrepancies.mean_of_group_quantiles(GROUPS), SMALL, (2 + 3.5) / 2),
    (words_of(), WORDS, 2 / 3 * math.log(2)),
    (words_of([0, 0, 1]), WORDS, [math.log(2), 0.0]),
    (instantaneous(), WORDS, [math.log(2), math.log(2), 0.0]),
    (discrepancies.per_feature(chi_square), SMALL, [11 / 12, 1 / 4]),
    (discrepancies.per_feature(nll), SMALL, [CONSTANT / 2 + 11 / 24, CONSTANT / 2 + 1 / 8]),
    (discrepancies.per_unit(chi_square), SMALL, [1 / 4, 1 / 4, 5 / 4]),
    (discrepancies.per_unit(nll), SMALL, [CONSTANT + 1 / 4, CONSTANT + 1 / 4, CONSTANT + 5 / 4]),
    (discrepancies.per_group(discrepancies.mean, GROUPS), SMALL, [1.5, 3.0]),
    (discrepancies.per_group(nll, GROUPS), SMALL, [CONSTANT + 1 / 4, CONSTANT + 5 / 4]),
    (discrepancies.group_gap(nll, GROUPS), SMALL, 1 / 2),
]
CASES = {f"{row}-{case[0].__name__}": case for row, case in enumerate(ALL)}
ORDERLY = ("autocorrelation", "residual_autocorrelation")
GROUPED = ("group", "grand_mean")  # these know the number of units
COUNTING = ("zero_fraction", "quantile(0.9)")  # these count or sort the entries


def cases_without(*words):
    return [name for name in CASES if not any(word in name for word in words)]


def normal_draw(x, mean=1.0, scale=2.0):
    law = Independent(Normal(torch.full_like(x, mean), scale), 1)
    return FunctionDraw(law.sample, lambda data: law)


def unchecked_draw(x):
    law = Independent(Normal(torch.ones_like(x), 2.0, validate_args=False), 1, validate_args=False)
    return FunctionDraw(law.sample, lambda data: law)


def random_counts(name, n_sets=1):
    """Counts in the shape that a case can take, with a column and a row of zeros."""
    shape = torch.tensor(CASES[name][1]).shape
    x = torch.poisson(torch.full((n_sets, *shape), 2.0, dtype=torch.float64))
    x[:, 0] = 0
    x[:, :, -1] = 0
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_value_computed_by_hand(name, dtype, device):
    function, data, expected = CASES[name]
    x = torch.tensor(data, dtype=dtype, device=device)
    value = discrepancies.check_discrepancy(function, x, normal_draw(x))
    assert value.dtype == dtype
    assert value.device == x.device
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert value.tolist() == pytest.approx(expected, abs=tolerance)


def test_every_public_discrepancy_has_a_row_and_a_line_of_the_table():
    rows = {name.split("-")[1].split("(")[0] for name in CASES}
    public = set(discrepancies.__all__) - {"check_discrepancy", "discrepancy"}
    assert rows == public
    assert [name for name in public if f"``{name}" not in discrepancies.__doc__] == []


@pytest.mark.parametrize("name", CASES)
def test_values_of_a_vector_say_what_they_stand_for(name):
    function, data, expected = CASES[name]
    n_units, n_features = torch.tensor(data).shape
    axis = getattr(function, "axis", None)
    assert (axis is None) == isinstance(expected, float)
    if axis is not None:
        lengths = {"feature": n_features, "unit": n_units}
        assert len(expected) == lengths.get(axis) or len(expected) == len(function.labels)


@pytest.mark.parametrize("name", CASES)
def test_batched_evaluation_agrees_with_one_by_one(name, device):
    function, stacked = CASES[name][0], random_counts(name, n_sets=6).to(device)
    draw = normal_draw(stacked[0])
    batched = torch.vmap(lambda x: function(x, draw))(stacked)
    single = torch.stack([function(x, draw) for x in stacked])
    assert torch.allclose(batched, single, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(name):
    function, x = CASES[name][0], random_counts(name)[0].cuda()
    draw = unchecked_draw(x)
    function(x, draw)  # constants are copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(x, draw)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_a_copy_sent_to_another_process_gives_the_same_value(name):
    function, x = CASES[name][0], random_counts(name)[0]
    copy = pickle.loads(pickle.dumps(wrap_non_picklable_objects(function)))
    assert copy.__name__ == function.__name__
    assert torch.equal(copy(x, normal_draw(x)), function(x, normal_draw(x)))


@pytest.mark.parametrize("name", CASES)
def test_constant_data_give_finite_values(name, device):
    x = torch.full_like(torch.tensor(CASES[name][1]), 0.1, device=device)
    function = CASES[name][0]
    value = function(x, normal_draw(x))
    assert not value.isnan().any()
    assert value.isfinite().all() or function is discrepancies.reconstruction_error
    spread = ("variance", "correlation", "skewness", "kurtosis", "dispersion", "trend")
    if any(function.__name__.endswith(word) for word in spread):
        assert (value == 0).all()


@pytest.mark.parametrize("name", cases_without(*COUNTING))
def test_missing_values_are_not_taken_for_constants(name):
    function, data, _ = CASES[name]
    x = torch.tensor(data)
    x[:, 0] = math.nan
    value = function(x, unchecked_draw(x))
    assert value.isnan().any()


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (1, 1)])
@pytest.mark.parametrize("name", cases_without(*ORDERLY, *GROUPED, "32-word"))
def test_single_unit_and_single_feature_give_numbers(name, shape):
    x = torch.rand(shape) + 1
    function = CASES[name][0]
    value = function(x, normal_draw(x))
    assert not value.isnan().any()
    assert value.isfinite().all() or function is discrepancies.reconstruction_error


@pytest.mark.parametrize("name", cases_without(*ORDERLY, *GROUPED))
def test_permuted_units_change_nothing(name):
    function, data, _ = CASES[name]
    x = torch.rand(40, len(data[0]), dtype=torch.float64)
    draw, order = normal_draw(x), torch.randperm(40)
    expected = function(x, draw)
    if getattr(function, "axis", None) == "unit":
        expected = expected[order]
    assert function(x[order], draw).tolist() == pytest.approx(expected.tolist())


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


def test_library_size_is_not_a_number_for_negative_row_totals():
    x = torch.tensor([[-1.0, 0.5], [1.0, 1.0]])
    assert discrepancies.library_size(x, None).isnan()
    assert discrepancies.library_size_correlation(x, normal_draw(x)).isnan()
    with pytest.raises(ValueError, match="the discrepancy of the data is NaN"):
        pop_pc([normal_draw(x)] * 3, x, discrepancies.library_size)


@pytest.mark.parametrize("q", [-0.1, 1.5, math.nan])
def test_quantile_refuses_what_is_no_probability(q):
    with pytest.raises(ValueError, match=r"q must be a probability in \[0, 1\], got"):
        discrepancies.quantile(q)


@pytest.mark.parametrize("n_features", [1, 5])
def test_moments_equal_scipy(n_features):
    x = torch.randn(30, n_features, dtype=torch.float64).exp()
    entries = x.numpy().ravel()
    for name, expected in {
        "variance": entries.var(),
        "skewness": stats.skew(entries),
        "kurtosis": stats.kurtosis(entries),
        "second_moment": stats.moment(entries, 2, center=0),
        "third_moment": stats.moment(entries, 3, center=0),
    }.items():
        value = getattr(discrepancies, name)(x, None).item()
        assert value == pytest.approx(expected, rel=1e-12), name


def test_shape_of_residuals_is_that_of_standardised_data():
    x = torch.randn(30, 4, dtype=torch.float64).exp()
    mean, scale = torch.randn(30, 4).double(), torch.rand(30, 4).double() + 0.5
    law = Independent(Normal(mean, scale), 1)
    draw, residuals = FunctionDraw(law.sample, lambda data: law), (x - mean) / scale
    skewness = discrepancies.residual_skewness(x, draw).item()
    assert skewness == pytest.approx(stats.skew(residuals.ravel().numpy()), rel=1e-12)
    kurtosis = discrepancies.residual_kurtosis(x, draw).item()
    assert kurtosis == pytest.approx(stats.kurtosis(residuals.ravel().numpy()), rel=1e-12)


def test_reconstruction_error_is_one_less_the_coefficient_of_determination():
    x = torch.randn(20, 3, dtype=torch.float64)
    means = x.mean(0).expand_as(x)
    for prediction, expected in [(means, 1.0), (x, 0.0), ((x + means) / 2, 0.25)]:
        law = Independent(Normal(prediction, 1.0), 1)
        draw = FunctionDraw(law.sample, lambda data, law=law: law)
        assert discrepancies.reconstruction_error(x, draw).item() == pytest.approx(expected)


def test_reconstruction_error_without_spread_is_infinite_unless_it_is_exact():
    x = torch.full((4, 2), 3.0)
    assert discrepancies.reconstruction_error(x, normal_draw(x)).item() == math.inf
    assert discrepancies.reconstruction_error(x, normal_draw(x, mean=3.0)).item() == 0


def test_unit_residual_correlation_equals_numpy():
    x = torch.randn(12, 9, dtype=torch.float64).cumsum(0)
    value = discrepancies.unit_residual_correlation(x, normal_draw(x)).item()
    off_diagonal = np.corrcoef(x.numpy())[~np.eye(12, dtype=bool)]
    assert value == pytest.approx(math.sqrt(np.mean(off_diagonal**2)), rel=1e-10)


def test_library_size_correlation_equals_numpy():
    x = torch.poisson(torch.rand(25, 4, dtype=torch.float64) * 10)
    depth = np.log1p(x.numpy().sum(1))
    each = [np.corrcoef(column, depth)[0, 1] for column in x.numpy().T]
    value = discrepancies.library_size_correlation(x, normal_draw(x)).item()
    assert value == pytest.approx(math.sqrt(np.mean(np.square(each))), rel=1e-12)


def test_autocorrelation_finds_an_order_that_the_model_does_not_know():
    walk = torch.randn(400, 3, dtype=torch.float64).cumsum(0)
    assert discrepancies.autocorrelation(1)(walk, None).item() > 0.9
    steps = Independent(Normal(walk[:-1], 1.0), 1)
    draw = FunctionDraw(steps.sample, lambda data: steps)
    value = discrepancies.residual_autocorrelation(1)(walk[1:], draw)
    assert abs(value.item()) < 0.1  # s.e. 1 / sqrt(1200) = .03


@pytest.mark.parametrize("lag", [0, -1, 1.5])
def test_autocorrelation_refuses_what_is_no_lag(lag):
    for make in (discrepancies.autocorrelation, discrepancies.residual_autocorrelation):
        with pytest.raises(ValueError, match="lag must be a positive integer, got"):
            make(lag)


def test_autocorrelation_needs_more_units_than_lag():
    with pytest.raises(ValueError, match="at lag 3 needs more units, got 3"):
        discrepancies.autocorrelation(3)(torch.rand(3, 2), None)


def test_index_of_dispersion_is_one_for_poisson_counts():
    counts = torch.poisson(torch.full((20000, 3), 4.0, dtype=torch.float64))
    value = discrepancies.index_of_dispersion(counts, None)
    assert value.tolist() == pytest.approx([1.0] * 3, abs=0.04)  # s.e. sqrt(2 / 20000) = .01
