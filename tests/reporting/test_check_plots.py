import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.stats import false_discovery_control

from probinterp.reporting import pop_pc_distribution, pop_pc_features, pop_pc_intervals

GREY, VERMILION = "#767676", "#d55e00"


@pytest.fixture
def feature_result(make_result):
    """Feature 1 is far too small, feature 4 far too large, the others as the model has them."""
    rng = np.random.default_rng(0)
    replicated = rng.normal(10, 1, (400, 6))
    heldout = replicated.mean(0) + np.array([0.1, -9.0, 0.2, -0.3, 12.0, 0.0])
    return make_result(replicated, heldout[None], discrepancy="feature_variance")


def points(ax, color):
    lines = [line for line in ax.lines if line.get_marker() == "." and len(line.get_xdata())]
    found = [line.get_xydata() for line in lines if to_hex(line.get_color()) == color]
    return np.concatenate(found) if found else np.empty((0, 2))


# pop_pc_distribution


def test_the_histogram_counts_the_replicates_and_the_line_is_the_heldout_value(make_result):
    replicated = np.random.default_rng(0).normal(5, 2, 400)
    ax = pop_pc_distribution(make_result(replicated, [9.25]))
    counts, edges = np.histogram(replicated, bins=20)
    assert [bar.get_height() for bar in ax.patches] == counts.tolist()
    assert [bar.get_x() for bar in ax.patches] == pytest.approx(edges[:-1])
    assert list(ax.lines[0].get_xdata()) == [9.25, 9.25]
    assert ax.get_xlabel() == "mean negative log likelihood"


def test_the_title_holds_p_z_and_kind(make_result):
    replicated = np.arange(100.0)
    ax = pop_pc_distribution(make_result(replicated, [89.5]))
    kind, numbers = ax.get_title(loc="left").split("\n")
    z = (89.5 - 49.5) / replicated.std(ddof=1)
    assert kind == "Pop-PC on held-out data, plug-in"
    assert numbers == f"one-sided p = 0.1 ± 0.03, two-sided p = {2 * 11 / 101:.3g}, z = +{z:.3g} sd"


def test_a_p_value_of_zero_is_reported_as_below_its_resolution(make_result):
    title = pop_pc_distribution(make_result(np.arange(50.0), [99.0])).get_title(loc="left")
    assert "one-sided p < 0.02, two-sided p = 0.0392" in title


def test_an_uncalibrated_check_says_so(make_result):
    result = make_result(np.arange(50.0), [9.0], check="ppc", calibrated=False)
    ax = pop_pc_distribution(result)
    assert ax.get_title(loc="left").startswith(
        "PPC on the data of the fit, plug-in, not calibrated"
    )
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "data of the fit: 9" in words


def test_refits_stand_beside_the_p_value_that_they_replace(make_result):
    refitted = torch.linspace(-60, 60, 59, dtype=torch.float64)
    result = make_result(np.arange(100.0), [99.5], refitted=refitted)
    title = " ".join(pop_pc_distribution(result).get_title(loc="left").split())
    expected = f"two-sided p = {2 / 101:.3g} ({result.p_refit:.3g} among 59 refits)"
    assert expected in title


def test_a_realised_check_has_two_histograms(make_result):
    rng = np.random.default_rng(0)
    heldout = rng.normal(1, 1, 64)
    ax = pop_pc_distribution(make_result(rng.normal(0, 1, 64), heldout, kind="realised"))
    outline = ax.patches[-1].get_xy()
    assert outline[:, 1].max() == np.histogram(heldout, bins=8)[0].max()
    assert "realised" in ax.get_title(loc="left")


def test_one_draw_and_constant_replicates_are_drawn(make_result):
    ax = pop_pc_distribution(make_result([3.0], [4.0]))
    assert "z not defined by one draw" in ax.get_title(loc="left").replace("\n", " ")
    constant = pop_pc_distribution(make_result([3.0] * 5, [3.0]))
    assert "z = +0 sd" in constant.get_title(loc="left").replace("\n", " ")


def test_whole_numbers_have_a_bar_each_and_a_constant_one_around_it(make_result):
    whole = np.repeat([12.0, 13.0, 15.0], [5, 30, 2])
    bars = pop_pc_distribution(make_result(whole, [20.0])).patches
    assert [bar.get_x() for bar in bars] == [11.5, 12.5, 13.5, 14.5]
    assert [bar.get_height() for bar in bars] == [5, 30, 0, 2]
    bars = pop_pc_distribution(make_result([0.3] * 30, [0.3])).patches
    (tall,) = [bar for bar in bars if bar.get_height()]
    assert tall.get_x() + tall.get_width() / 2 == pytest.approx(0.3)


def test_results_of_the_wrong_shape_are_refused(make_result, feature_result):
    with pytest.raises(ValueError, match=r"feature_variance has shape \(6,\); use pop_pc_features"):
        pop_pc_distribution(feature_result)
    scalar = make_result(np.arange(5.0), [1.0])
    for plot in (pop_pc_features, pop_pc_intervals):
        with pytest.raises(ValueError, match="is a single number; use pop_pc_distribution"):
            plot(scalar)
    assert plt.get_fignums() == []


def test_infinite_values_are_refused(make_result):
    with pytest.raises(ValueError, match="replicated must be finite, got 1 NaN or infinite"):
        pop_pc_distribution(make_result([1.0, np.inf], [1.0]))


# pop_pc_features


def test_effect_sizes_are_drawn_in_order_and_coloured_by_rejection(feature_result):
    ax = pop_pc_features(feature_result)
    z = feature_result.z.numpy()
    adjusted = false_discovery_control(feature_result.p_two_sided.numpy())
    assert (adjusted <= 0.05).tolist() == [False, True, False, False, True, False]
    rank = z.argsort().argsort() + 1
    expected = {GREY: [0, 2, 3, 5], VERMILION: [1, 4]}
    for color, features in expected.items():
        drawn = points(ax, color)
        assert drawn[:, 0].tolist() == rank[features].tolist()
        assert drawn[:, 1] == pytest.approx(z[features])
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert sorted(dashed) == pytest.approx(sorted(z[[1, 4]]))


def test_the_worst_features_are_named_at_their_points(feature_result):
    names = [f"gene {i}" for i in range(6)]
    ax = pop_pc_features(feature_result, feature_names=names, n_top=2)
    z = feature_result.z.numpy()
    assert {text.get_text(): text.xy for text in ax.texts} == {
        "gene 4": (6, pytest.approx(z[4])),
        "gene 1": (1, pytest.approx(z[1])),
    }


def test_the_title_counts_the_rejections(feature_result):
    title = pop_pc_features(feature_result).get_title(loc="left")
    largest = feature_result.p_two_sided.numpy()[[1, 4]].max()
    expected = f"2 of 6 rejected at a false discovery rate of 0.05 (two-sided p ≤ {largest:.2g})"
    assert title.split("\n")[1] == expected


def test_the_title_says_when_the_draws_do_not_allow_a_rejection(make_result):
    replicated = np.random.default_rng(0).normal(size=(99, 50))
    ax = pop_pc_features(make_result(replicated, replicated.mean(0)[None] + 0.01))
    title = " ".join(ax.get_title(loc="left").split())
    assert title.endswith(
        "0 of 50 rejected at a false discovery rate of 0.05 99 draws cannot reject fewer than 20"
    )  # 20 x .05 / 50 = .02 = 2 / 100
    assert ax.get_legend() is None  # a legend would call "not rejected" what could not be


def test_features_are_rejected_by_refits_where_there_are_some(make_result):
    rng = np.random.default_rng(0)
    replicated = rng.normal(size=(400, 4))
    refitted = torch.tensor(rng.normal(0, 50, (199, 4)))  # far wider than the replicates
    result = make_result(replicated, [[9.0, 0.0, 0.0, 0.0]], refitted=refitted)
    ax = pop_pc_features(result)
    assert len(points(ax, VERMILION)) == 0
    assert "0 of 4 rejected" in ax.get_title(loc="left")
    few = make_result(replicated, [[9.0, 0.0, 0.0, 0.0]], refitted=refitted[:170])
    title = " ".join(pop_pc_features(few, alpha=0.01).get_title(loc="left").split())
    assert title.endswith(" 170 refits cannot reject fewer than 5")  # 5 x .01 / 4 > 2 / 171


def test_infinite_effects_are_triangles_at_the_edge(make_result):
    replicated = np.random.default_rng(0).normal(size=(50, 3))
    replicated[:, 0] = 1.0
    ax = pop_pc_features(make_result(replicated, [[2.0, 0.0, 0.5]]))
    (triangle,) = [line for line in ax.lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert triangle.get_xdata().tolist() == [3]
    assert 0 < triangle.get_ydata()[0] < ax.get_ylim()[1]


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "linear"), (100.0, "symlog")])
def test_wide_ranges_of_effects_get_a_logarithmic_scale(make_result, factor, scale):
    replicated = np.random.default_rng(0).normal(size=(50, 30))
    ax = pop_pc_features(make_result(replicated, factor * np.linspace(-2, 2, 30)[None]))
    assert ax.get_yscale() == scale
    assert ax.get_ylabel().endswith("beyond ±3") == (scale == "symlog")
    if scale == "symlog":
        expected = ["-300", "-100", "-30", "-10", "-3", "-1", "0", "1", "3", "10", "30", "100"]
        ax.figure.canvas.draw()
        labels = [text.get_text().replace("−", "-") for text in ax.get_yticklabels()]
        assert labels[: len(expected)] == expected


def test_the_axis_is_called_what_its_values_are(make_result):
    replicated = np.random.default_rng(0).normal(size=(50, 3))
    ax = pop_pc_features(make_result(replicated, [[0.0, 0.0, 0.0]], axis="group"))
    assert ax.get_xlabel() == "groups in order of z"
    named = pop_pc_features(make_result(replicated, [[0.0, 0.0, 0.0]]), noun="study")
    assert named.get_xlabel() == "studies in order of z"


def test_a_single_feature_is_drawn(make_result):
    ax = pop_pc_features(make_result([[1.0], [2.0], [4.0]], [[3.0]]))
    assert points(ax, GREY)[:, 0].tolist() == [1]
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": 0.0}, "alpha must lie between 0 and 1, got 0.0"),
        ({"n_top": 0}, "n_top must be a positive whole number"),
        ({"feature_names": ["a"]}, "feature_names must have one name for each of 6, got 1"),
    ],
)
def test_bad_options_are_refused(feature_result, options, text):
    with pytest.raises(ValueError, match=text):
        pop_pc_features(feature_result, **options)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", [pop_pc_features, pop_pc_intervals])
def test_one_draw_has_no_effect_size(make_result, plot):
    with pytest.raises(ValueError, match="effect sizes need at least 2 draws, the result has 1"):
        plot(make_result([[1.0, 2.0]], [[1.0, 2.0]]))


def test_effects_that_are_not_numbers_are_refused(make_result):
    with pytest.raises(ValueError, match=r"z of mean_negative_log_likelihood is NaN for 1 feat"):
        pop_pc_features(make_result([[1.0, np.nan], [2.0, 3.0]], [[1.0, 2.0]]))


# pop_pc_intervals


def test_intervals_are_percentiles_of_the_worst_features(feature_result):
    names = [f"gene {i}" for i in range(6)]
    ax = pop_pc_intervals(feature_result, feature_names=names, n_top=3)
    worst = np.argsort(-feature_result.z.abs().numpy())[:3]
    assert [text.get_text() for text in ax.get_yticklabels()] == [names[i] for i in worst]
    replicated = feature_result.replicated.numpy()[:, worst]
    low, high = np.percentile(replicated, [5, 95], axis=0)
    segments = np.array(ax.collections[0].get_segments())
    assert segments[:, 0, 0] == pytest.approx(low)
    assert segments[:, 1, 0] == pytest.approx(high)
    median, heldout = ax.lines[:2]
    assert median.get_xdata() == pytest.approx(np.median(replicated, axis=0))
    assert heldout.get_xdata() == pytest.approx(feature_result.heldout.numpy()[0, worst])
    assert segments[:, 0, 1].tolist() == [0.5, 1.5, 2.5]
    assert ax.yaxis_inverted()


def test_positive_values_of_many_sizes_get_a_logarithmic_scale(make_result):
    replicated = torch.rand(30, 2, dtype=torch.float64) + torch.tensor([0.5, 500.0])
    heldout = torch.tensor([[1.0, 500.0]])
    assert pop_pc_intervals(make_result(replicated, heldout)).get_xscale() == "log"
    assert pop_pc_intervals(make_result(-replicated, -heldout)).get_xscale() == "linear"


def test_standardised_values_lie_at_z_and_constant_ones_at_zero(make_result):
    rng = np.random.default_rng(0)
    replicated = rng.normal(size=(300, 3)) * [1, 1000, 0] + [0, 5000, 2]
    result = make_result(replicated, [[2.0, 3500.0, 2.0]])
    ax = pop_pc_intervals(result, standardised=True)
    order = np.argsort(-result.z.abs().numpy(), kind="stable")
    assert ax.lines[1].get_xdata() == pytest.approx(result.z.numpy()[order])
    segments = np.array(ax.collections[0].get_segments())[:, :, 0]
    column = replicated[:, order[0]]
    low = (np.percentile(column, 5) - column.mean()) / column.std(ddof=1)
    assert segments[0, 0] == pytest.approx(low)
    assert segments[2].tolist() == [0, 0]
    assert ax.get_xlabel().endswith("[sd of the replicates from their mean]")


def test_an_infinite_effect_has_no_place_on_a_standardised_axis(make_result):
    result = make_result([[1.0, 2.0], [1.0, 3.0]], [[4.0, 2.0]])
    with pytest.raises(ValueError, match="z must be finite, got 1 NaN or infinite"):
        pop_pc_intervals(result, standardised=True)
