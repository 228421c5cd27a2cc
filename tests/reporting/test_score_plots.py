import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.stats import norm
from scipy.stats import t as student

from probinterp.criticism import Coverage, Score, compare_scores
from probinterp.reporting import interval_coverage, pit_ecdf, pit_histogram, score_differences
from probinterp.reporting.score_plots import effective_size
from probinterp.reporting.uniform_band import GRID, uniform_band

BLUE, VERMILION, GREY = "#0072b2", "#d55e00", "#767676"
LEVELS = torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64)


@pytest.fixture
def comparison():
    rng = np.random.default_rng(0)
    base = rng.normal(-100, 10, 400)
    scores = {
        "far": base - 6 + rng.normal(0, 8, 400),
        "best": base,
        "near": base - 0.1 + rng.normal(0, 4, 400),
    }
    zero = torch.zeros(400, dtype=torch.float64)
    return compare_scores(
        {k: Score("log score", torch.tensor(v), True, zero, 9) for k, v in scores.items()}
    )


def dependent(n_units, n_features, share, seed=0):
    """PIT values, uniform, with a correlation ``share`` of the normal scores within a unit."""
    rng = np.random.default_rng(seed)
    common, own = rng.normal(size=(n_units, 1)), rng.normal(size=(n_units, n_features))
    return norm.cdf(np.sqrt(share) * common + np.sqrt(1 - share) * own)


def coverage_of(pit):
    return Coverage(LEVELS, torch.tensor(pit), 500)


# score_differences


def test_models_are_ordered_and_bars_are_one_and_two_standard_errors(comparison):
    ax = score_differences(comparison)
    assert [row.name for row in comparison.rows] == ["best", "near", "far"]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == [f"{row.name} ({row.mean:.4g})" for row in comparison.rows]
    assert ax.yaxis_inverted()
    wide, narrow = (ax.collections[i].get_segments()[0] for i in (0, 1))
    far = comparison.rows[2]
    for segment, factor in ((wide, 2), (narrow, 1)):
        gap, reach = far.difference, factor * far.difference_error
        assert segment[:, 0] == pytest.approx([gap - reach, gap + reach])
        assert segment[:, 1].tolist() == [2.5, 2.5]


def test_only_clear_differences_are_coloured(comparison):
    ax = score_differences(comparison)
    points = {
        to_hex(line.get_color()): line.get_xydata()
        for line in ax.lines
        if line.get_marker() in "oD"
    }
    assert points[BLUE].tolist() == [[0, 0.5]]
    assert points[GREY] == pytest.approx(np.array([[comparison.rows[1].difference, 1.5]]))
    assert points[VERMILION] == pytest.approx(np.array([[comparison.rows[2].difference, 2.5]]))


def test_infinite_scores_cannot_be_drawn(comparison):
    rows = (comparison.rows[0], comparison.rows[1]._replace(difference=-np.inf))
    with pytest.raises(ValueError, match="differences must be finite, got 1 NaN or infinite"):
        score_differences(comparison._replace(rows=rows))


# interval_coverage


def test_points_are_observed_minus_nominal_with_both_errors():
    coverage = coverage_of(dependent(80, 30, 0.5))
    ax = interval_coverage(coverage)
    (bars,) = ax.containers
    points, _, (segments,) = bars
    expected = (coverage.observed - coverage.levels).numpy()
    assert points.get_ydata() == pytest.approx(expected)
    lengths = [np.ptp(segment[:, 1]) for segment in segments.get_segments()]
    assert lengths == pytest.approx((4 * coverage.standard_error).tolist())
    band = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert band == pytest.approx(2 * 0.5 / np.sqrt(80 * 30))
    texts = [text.get_text() for text in ax.texts]
    assert texts == [f"{share:.1%}" for share in coverage.observed.tolist()]


def test_one_unit_has_no_spread_over_units():
    ax = interval_coverage(coverage_of(dependent(1, 40, 0.0)))
    assert ax.containers == []
    assert len(ax.lines[2].get_xdata()) == 3


# pit_histogram and pit_ecdf


def test_the_histogram_is_a_density_with_a_band_for_all_bins():
    pit = dependent(200, 50, 0.0)
    ax = pit_histogram(coverage_of(pit), n_bins=10)
    bars = ax.patches[:10]
    assert [bar.get_height() for bar in bars] == pytest.approx(
        (np.histogram(pit, 10, (0, 1))[0] / 1000).tolist()
    )
    high, edges, low = ax.patches[10].get_data()
    half = student.isf(0.0025, 199) * np.sqrt(0.1 * 0.9 / 1e4) * 10
    assert edges == pytest.approx(np.linspace(0, 1, 11))
    assert high - 1 == pytest.approx(np.full(10, half), rel=0.15)
    assert 1 - low == pytest.approx(high - 1)


def test_the_bands_hold_dependent_entries():
    outside = {"histogram": 0, "ecdf": 0}
    for seed in range(40):
        pit = dependent(60, 20, 0.6, seed)
        ax = pit_histogram(coverage_of(pit), n_bins=10)
        high, _, low = ax.patches[10].get_data()
        heights = np.array([bar.get_height() for bar in ax.patches[:10]])
        outside["histogram"] += bool((heights < low).any() or (heights > high).any())
        low, high = uniform_band(int(effective_size(pit)))
        share = (np.sort(pit.ravel()).searchsorted(GRID, side="right")) / pit.size
        outside["ecdf"] += bool(((share < low) | (share > high)).any())
        plt.close(ax.figure)
    # 2 of 40 expected; independence would reject far more than half of them
    assert outside["histogram"] <= 6
    assert outside["ecdf"] <= 6


def test_the_effective_size_is_that_of_the_units_where_entries_are_equal():
    same = np.repeat(np.random.default_rng(0).random((500, 1)), 30, axis=1)
    assert effective_size(same) == pytest.approx(500, rel=0.02)
    assert effective_size(dependent(500, 30, 0.0)) == pytest.approx(15000, rel=0.1)
    assert effective_size(same[:1]) == 30


def test_the_distribution_of_the_pit_is_drawn_and_judged():
    rng = np.random.default_rng(0)
    narrow = norm.cdf(rng.normal(0, 1.3, (200, 50)))
    ax = pit_ecdf(coverage_of(narrow))
    expected = np.array([(narrow <= u).mean() for u in GRID]) - GRID
    assert ax.lines[1].get_ydata() == pytest.approx(expected)
    assert "outside the 95% band" in ax.get_title(loc="left")
    right = pit_ecdf(coverage_of(dependent(200, 50, 0.3))).get_title(loc="left")
    assert "inside the 95% band" in right


def test_the_number_of_bins_must_be_positive():
    with pytest.raises(ValueError, match="n_bins must be a positive whole number, got 0"):
        pit_histogram(coverage_of(dependent(5, 5, 0.0)), n_bins=0)
