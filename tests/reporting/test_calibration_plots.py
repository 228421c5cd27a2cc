import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from probinterp.criticism import CalibratedPPCResult
from probinterp.reporting import calibrated_ppc_distribution, p_value_ecdf, refit_calibration
from probinterp.reporting.uniform_band import GRID, uniform_band


def title(ax):
    return " ".join(ax.get_title(loc="left").split())


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# p_value_ecdf


def test_the_curve_is_the_share_at_or_below_minus_uniform():
    p = np.array([0.1, 0.1, 0.5, 1.0])
    ax = p_value_ecdf(p)
    curve = ax.lines[1]
    expected = np.array([(p <= u).mean() for u in GRID]) - GRID
    np.testing.assert_allclose(curve.get_xdata(), GRID)
    np.testing.assert_allclose(curve.get_ydata(), expected, atol=1e-12)


def test_the_band_is_simultaneous():
    ax = p_value_ecdf(np.random.default_rng(0).random(200), level=0.9)
    low, high = uniform_band(200, 0.9)
    drawn = ax.collections[0].get_paths()[0].vertices
    assert drawn[:, 1].min() == pytest.approx((low - GRID).min())
    assert drawn[:, 1].max() == pytest.approx((high - GRID).max())
    assert legend(ax) == ["90% band"]


def test_the_heading_says_whether_and_where_the_band_is_left():
    uniform = (np.arange(100) + 0.5) / 100
    assert title(p_value_ecdf(uniform)) == ("100 p-values: inside the 95% band of uniform values")
    small = title(p_value_ecdf(uniform**3))
    assert small.startswith("100 p-values: outside the 95% band of uniform values, too many below")
    assert "too few below" in title(p_value_ecdf(1 - uniform**3))


def test_several_sets_are_named_and_those_outside_marked():
    uniform = (np.arange(100) + 0.5) / 100
    ax = p_value_ecdf({"PPC": uniform**3, "Pop-PC": uniform})
    assert legend(ax) == ["95% band", "PPC (leaves the band)", "Pop-PC"]
    assert title(ax) == "100 p-values a curve"
    assert ax.lines[1].get_color() != ax.lines[2].get_color()


@pytest.mark.parametrize(
    ("p", "text"),
    [
        ([0.1, 1.2], r"p must lie in \[0, 1\], got values from 0.1 to 1.2"),
        ([0.1, np.nan], "p must be finite, got 1 NaN"),
        ([], "p is empty"),
        ({}, "at least one set"),
        ({"a": [0.1], "b": [0.1, 0.2]}, r"sets of one size.*\{'a': 1, 'b': 2\}"),
    ],
)
def test_what_is_not_a_set_of_p_values_is_refused(p, text):
    with pytest.raises(ValueError, match=text):
        p_value_ecdf(p)
    assert plt.get_fignums() == []


# refit_calibration


@pytest.fixture
def refit_result(make_result):
    rng = np.random.default_rng(0)
    refitted = torch.tensor(rng.normal(0.15, 0.15, 60))
    return make_result(rng.normal(5, 0.1, 200), [5.25], refitted=refitted)


def test_refits_and_replicates_are_shares_and_the_line_is_the_excess(refit_result):
    ax = refit_calibration(refit_result)
    bars = [patch for patch in ax.patches if hasattr(patch, "get_height")]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
    edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
    refitted = refit_result.refitted.numpy()
    counts = np.histogram(refitted, edges)[0]
    assert [bar.get_height() for bar in bars] == pytest.approx((counts / 0.6).tolist())
    replicated = refit_result.replicated.numpy()
    outline = ax.patches[-1].get_xy()[:, 1].max()
    assert outline == pytest.approx(
        np.histogram(replicated - replicated.mean(), edges)[0].max() / 2
    )
    rug, line = ax.lines[:2]
    assert rug.get_xdata() == pytest.approx(refitted)
    assert line.get_xdata()[0] == pytest.approx(5.25 - replicated.mean())


def test_the_heading_sets_both_p_values_side_by_side(refit_result):
    with_refits, without = refit_calibration(refit_result).get_title(loc="left").split("\n")
    assert with_refits == f"two-sided p = {refit_result.p_refit:.3g} among 60 refits (rank)"
    assert without == f"without refits two-sided p = {refit_result.p_two_sided:.3g}"
    assert refit_result.p_refit > 10 * refit_result.p_two_sided


def test_few_refits_are_said_to_be_judged_by_a_t_distribution(make_result):
    result = make_result(np.arange(50.0), [30.0], refitted=torch.tensor([1.0, 2.0, 4.0, 9.0]))
    heading = title(refit_calibration(result))
    assert f"two-sided p = {result.p_refit_t:.3g} among 4 refits (t distribution)" in heading


def test_refits_are_needed_and_one_value(make_result):
    with pytest.raises(ValueError, match="mean_negative_log_likelihood has no refits"):
        refit_calibration(make_result(np.arange(5.0), [1.0]))
    vector = make_result(np.ones((5, 2)), np.ones((1, 2)), refitted=torch.ones(9, 2))
    with pytest.raises(ValueError, match=r"has shape \(2,\); use pop_pc_features"):
        refit_calibration(vector)


# calibrated_ppc_distribution


def test_p_values_of_simulated_data_are_counted_beside_that_of_the_data(make_result):
    p = torch.tensor(np.random.default_rng(0).beta(4, 4, 100))
    observed = make_result(np.arange(100.0), [89.5], check="ppc", calibrated=False)
    result = CalibratedPPCResult(observed, p, torch.tensor(0.5, dtype=torch.float64), 0)
    ax = calibrated_ppc_distribution(result)
    expected = np.histogram(p.numpy(), 20, (0, 1))[0]
    assert [bar.get_height() for bar in ax.patches] == expected.tolist()
    flat, line = ax.lines
    assert flat.get_ydata()[0] == 5
    assert line.get_xdata()[0] == pytest.approx(0.1)
    assert title(ax).startswith(f"calibrated p = {result.p_value:.3g} ± {result.mc_error:.2g}")


def test_a_calibrated_check_of_several_values_is_refused(make_result):
    observed = make_result(np.ones((5, 2)), np.ones((1, 2)), check="ppc")
    result = CalibratedPPCResult(observed, torch.ones(9, 2), torch.ones(2), 0)
    with pytest.raises(ValueError, match=r"p_refits must have 1 dimension\(s\), got shape"):
        calibrated_ppc_distribution(result)
