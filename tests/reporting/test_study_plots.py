import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from probinterp.inference.posterior import Factors
from probinterp.inference.stability import Stability
from probinterp.reporting import (
    plot_activity,
    plot_block_loadings,
    plot_stability,
    plot_variance_explained,
)

STUDIES = ["lupus", "control"]
NAMES = ["lupus_1", "shared_1", "control_1", "shared_2"]
BLOCK = torch.tensor([0, -1, 1, -1])
OF = BLOCK.numpy()
EFFECTS = np.array(
    [
        [4.0, 0.0, 0.0, 0.0],
        [2.0, 0.25, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, -3.0, 0.0],
        [0.0, 0.0, 0.0, 2.0],
    ]
)
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"


def written(ax):
    return [child.get_text() for child in ax.get_children() if isinstance(child, Annotation)]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# plot_block_loadings


def test_columns_are_grouped_by_block_and_rows_follow_them():
    ax = plot_block_loadings(EFFECTS, NAMES, BLOCK, STUDIES, feature_names=list("abcde"))
    assert ticks(ax.xaxis) == ["shared_1", "shared_2", "lupus_1", "control_1"]
    assert ticks(ax.yaxis) == ["c", "e", "a", "b", "d"]
    (mesh,) = ax.collections
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.25, 0, 0.5, 0], [0, 0, 0, -1]]
    assert np.asarray(mesh.get_array()).tolist() == pytest.approx(np.array(expected))
    ax.figure.canvas.draw()


def test_blocks_have_separators_bars_and_titles():
    ax = plot_block_loadings(EFFECTS, NAMES, BLOCK, STUDIES)
    assert written(ax) == ["shared", "lupus", "control"]
    upright = [line.get_xdata() for line in ax.lines if line.get_xdata()[0] == line.get_xdata()[1]]
    assert [x[0] for x in upright] == [2, 3]
    bars = {to_hex(bar.get_facecolor()): (bar.get_x(), bar.get_width()) for bar in ax.patches}
    assert bars[BLUE] == pytest.approx((0.08, 1.84))
    assert bars[VERMILION] == pytest.approx((2.08, 0.84))
    assert bars[GREEN] == pytest.approx((3.08, 0.84))


def test_titles_that_are_too_long_are_slanted_and_given_axes_are_used():
    _, own = plt.subplots()
    ax = plot_block_loadings(EFFECTS, NAMES, BLOCK, ["polycythaemia vera", "control"], ax=own)
    assert ax is own
    angles = {c.get_rotation() for c in ax.get_children() if isinstance(c, Annotation)}
    assert angles == {40}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"block": [0, 1]}, "block must have one study for each of 4, got 2"),
        ({"block": [0, 1, 2, -1]}, r"from -1 to 1, got \[-1.0, 0.0, 1.0, 2.0\]"),
        ({"block": [0, 0.5, 1, -1]}, "whole numbers"),
        ({"study_names": ["a", "a"]}, "study_names must be different"),
        ({"names": ["a"]}, "names must have one name for each of 4"),
        ({"effects": 0 * EFFECTS}, "all loadings are zero"),
    ],
)
def test_loadings_that_do_not_fit_are_refused(change, text):
    given = {"effects": EFFECTS, "names": NAMES, "block": BLOCK, "study_names": STUDIES} | change
    with pytest.raises(ValueError, match=text):
        plot_block_loadings(**given)


# plot_activity


def activity(n_obs=200, **options):
    rng = np.random.default_rng(0)
    study = np.repeat([0, 1], n_obs)
    scores = rng.normal(size=(2 * n_obs, 4)) * ((OF < 0) | (OF == study[:, None]))
    return scores, plot_activity(scores, NAMES, study, STUDIES, BLOCK, **options)


def test_panels_show_the_quantiles_of_every_study_that_has_the_factor():
    scores, figure = activity()
    assert [ax.get_title(loc="left") for ax in figure.axes] == NAMES
    shared = figure.axes[1]
    boxes = [patch for patch in shared.patches if isinstance(patch, Rectangle)]
    for m, box in enumerate(boxes):
        first, third = np.quantile(scores[200 * m : 200 * (m + 1), 1], [0.25, 0.75])
        assert box.get_x() == pytest.approx(first)
        assert box.get_width() == pytest.approx(third - first)
    whiskers, middle = shared.collections[:2]
    low, high = np.quantile(scores[:200, 1], [0.05, 0.95])
    assert whiskers.get_segments()[0][:, 0].tolist() == pytest.approx([low, high])
    assert middle.get_segments()[0][0, 0] == pytest.approx(np.median(scores[:200, 1]))
    assert [len(line.get_xdata()) for line in shared.lines[1:]] == [150, 150]
    assert ticks(figure.axes[0].yaxis) == STUDIES
    assert shared.yaxis_inverted()
    figure.canvas.draw()


def test_studies_without_the_factor_are_grey_and_empty():
    _, figure = activity()
    lupus, shared, control, _ = figure.axes
    grey = [to_hex(patch.get_facecolor()) for patch in lupus.patches].index(to_hex("0.9"))
    assert lupus.patches[grey].get_y() == 1
    assert len(lupus.lines) == 2  # zero, and the points of one study
    assert to_hex(lupus.lines[1].get_color()) == VERMILION
    assert to_hex(control.lines[1].get_color()) == GREEN
    assert to_hex("0.9") not in [to_hex(patch.get_facecolor()) for patch in shared.patches]


def test_of_many_factors_every_block_keeps_its_first():
    _, figure = activity(max_factors=3)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["lupus_1", "shared_1", "control_1"]
    assert figure.get_suptitle() == "3 of 4 factors, the first of every block"


def test_rows_of_panels_are_completed_and_a_study_may_be_empty():
    scores = np.random.default_rng(0).normal(size=(20, 5))
    names = [f"shared_{k}" for k in range(1, 6)]
    figure = plot_activity(scores, names, np.zeros(20), STUDIES, [-1] * 5)
    assert len(figure.axes) == 5
    shown = [ax.xaxis.get_tick_params()["labelbottom"] for ax in figure.axes]
    assert shown == [False, True, True, True, True]
    figure.canvas.draw()


def test_activity_that_does_not_fit_is_refused():
    scores = np.zeros((3, 4))
    with pytest.raises(ValueError, match="study must have one study for each of 3, got 2"):
        plot_activity(scores, NAMES, [0, 1], STUDIES, BLOCK)
    with pytest.raises(ValueError, match="study must hold whole numbers from 0 to 1"):
        plot_activity(scores, NAMES, [0, 1, -1], STUDIES, BLOCK)
    with pytest.raises(ValueError, match="max_factors must be a positive whole number"):
        plot_activity(scores, NAMES, [0, 1, 1], STUDIES, BLOCK, max_factors=0)


# plot_variance_explained


def test_bars_are_stacked_and_large_shares_written():
    ax = plot_variance_explained(torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.05, 0.45]]), STUDIES)
    bars = [[(bar.get_x(), bar.get_width()) for bar in part] for part in ax.containers]
    expected = [[(0, 0.6), (0, 0.5)], [(0.6, 0.3), (0.5, 0.05)], [(0.9, 0.1), (0.55, 0.45)]]
    assert np.array(bars) == pytest.approx(np.array(expected), abs=1e-6)
    assert written(ax) == ["60 %", "50 %", "30 %", "10 %", "45 %"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["shared", "specific", "noise"]
    colors = [to_hex(part[0].get_facecolor()) for part in ax.containers]
    assert colors == [BLUE, VERMILION, to_hex("0.8")]
    assert ticks(ax.yaxis) == STUDIES


def test_a_negative_share_stands_left_of_zero():
    ax = plot_variance_explained([[1.0, -0.2, 0.2]], ["lupus"])
    starts = [(part[0].get_x(), part[0].get_width()) for part in ax.containers]
    assert np.array(starts) == pytest.approx(np.array([(0, 1.0), (0, -0.2), (1.0, 0.2)]))
    assert ax.get_xlim() == pytest.approx((-0.21, 1.2))


def test_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match=r"must sum to 1, got \[0.9\]"):
        plot_variance_explained([[0.5, 0.3, 0.1]], ["lupus"])
    with pytest.raises(ValueError, match="block_names must have one name for each of 2"):
        plot_variance_explained([[0.5, 0.5]], ["lupus"])


# plot_stability


def stability(block=BLOCK):
    same = torch.tensor([[True, True, True, False], [True, True, True, True]])
    correlation = torch.tensor([[0.9, 0.95, 0.3, 0.8], [0.8, 0.99, 0.4, 0.85]])
    w = torch.tensor(EFFECTS)
    found = Factors(torch.zeros(3, 4), torch.ones(3, 4), w, None, w, torch.arange(4), block)
    recovered = torch.tensor([1.0, 1.0, 0.0, 0.5])
    return Stability(found, correlation, correlation, same, recovered, torch.ones(5, 4))


def test_points_are_refits_and_hollow_in_another_block():
    figure = plot_stability(stability(), STUDIES)
    left, right = figure.axes
    assert ticks(left.yaxis) == ["lupus_1", "shared_1", "control_1", "shared_2"]
    own, other = left.lines[6:8]
    assert own.get_xydata() == pytest.approx(np.array([[0.85, 3.75]]))
    assert other.get_xydata() == pytest.approx(np.array([[0.8, 3.25]]))
    assert other.get_markerfacecolor() == "white"
    assert [to_hex(left.lines[2 * k].get_color()) for k in range(4)] == [
        VERMILION,
        BLUE,
        GREEN,
        BLUE,
    ]
    bars = [part[0] for part in right.containers]
    assert [bar.get_width() for bar in bars] == [1.0, 1.0, 0.0, 0.5]
    assert [bar.get_alpha() for bar in bars] == [1.0, 1.0, 0.35, 0.35]
    assert written(right) == ["1.00", "1.00", "0.00", "0.50"]
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key == ["lupus", "shared", "control", "in another block"]
    figure.canvas.draw()


def test_thresholds_are_dashed_lines():
    left, right = plot_stability(stability(), STUDIES, threshold=0.5, same_factor=0.6).axes
    dashed = [[x.get_xdata()[0] for x in ax.lines if x.get_ls() == "--"] for ax in (left, right)]
    assert dashed == [[0.6], [0.5]]
    assert right.containers[3][0].get_alpha() == 1.0


def test_a_model_without_blocks_has_one_colour():
    given = stability(block=None)
    figure = plot_stability(given._replace(same_block=torch.ones(2, 4, dtype=torch.bool)))
    assert {to_hex(bar[0].get_facecolor()) for bar in figure.axes[1].containers} == {BLUE}
    assert ticks(figure.axes[0].yaxis)[0] == "factor_1"
    assert not figure.legends


@pytest.mark.parametrize("name", ["threshold", "same_factor"])
def test_thresholds_outside_the_unit_interval_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must lie between 0 and 1, got 1.5"):
        plot_stability(stability(), STUDIES, **{name: 1.5})


def test_one_far_observation_does_not_squeeze_the_others():
    torch.manual_seed(0)
    scores = torch.randn(90, 1)
    scores[7] = -28.0
    figure = plot_activity(scores, ["shared_1"], np.arange(90) % 2, STUDIES, [-1])
    ax = figure.axes[0]
    low, high = ax.get_xlim()
    assert -8 < low < -2
    assert 2 < high < 8
    (far,) = [line for line in ax.lines if line.get_marker() == "<"]
    assert far.get_ydata().tolist() == [7 % 2 + 0.5]
    assert low < far.get_xdata()[0] < -2
