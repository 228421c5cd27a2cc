import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from probinterp.reporting import factor_activity, loadings_heatmap, training_curve


def mesh_of(ax):
    (mesh,) = ax.collections
    return np.asarray(mesh.get_array())


def row_names(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def column_names(ax):
    return [text.get_text() for text in ax.get_xticklabels()]


# training_curve


def test_training_curve_draws_the_losses_of_the_history(make_history):
    ax = training_curve(make_history([3.0, 2.0, 1.5, 1.4], {2: 2.5, 4: 2.1}, best_epoch=4))
    training, heldout, best = ax.lines
    assert training.get_xydata().tolist() == [[1, 3.0], [2, 2.0], [3, 1.5], [4, 1.4]]
    assert heldout.get_xydata().tolist() == [[2, 2.5], [4, 2.1]]
    assert list(best.get_xdata()) == [4, 4]
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["training", "held-out", "weights kept: epoch 4"]
    assert ax.get_ylabel() == "negative ELBO per observation [nats]"


def test_an_early_spike_is_left_off_the_scale_and_mentioned(make_history):
    losses = [1e6, 500.0] + [10.0 - 0.01 * i for i in range(38)]
    ax = training_curve(make_history(losses, {10: 12.0}))
    low, high = ax.get_ylim()
    bottom, top = losses[-1], 12.0
    assert low == pytest.approx(bottom - 0.05 * (top - bottom))
    assert high == pytest.approx(top + 0.05 * (top - bottom))
    assert ax.get_title(loc="right") == "2 early epoch(s) off the scale, up to 1e+06"


def test_a_steady_fall_is_shown_whole(make_history):
    ax = training_curve(make_history([float(20 - i) for i in range(20)]))
    assert ax.get_ylim() == pytest.approx((1 - 0.95, 20 + 0.95))
    assert ax.get_title(loc="right") == ""


@pytest.mark.parametrize("losses", [[2.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0], [0.0], [-5.0, math.nan]])
def test_short_constant_and_partly_missing_histories_are_drawn(make_history, losses):
    ax = training_curve(make_history(losses))
    low, high = ax.get_ylim()
    assert low < min(losses) < high
    ax.figure.canvas.draw()


@pytest.mark.parametrize("losses", [[], [math.nan, math.inf]])
def test_a_history_without_a_loss_is_refused(make_history, losses):
    with pytest.raises(ValueError, match="history has no epoch with a finite loss"):
        training_curve(make_history(losses))


# loadings_heatmap

LOADINGS = np.array(
    [
        [0.0, 1.0, 0.0],
        [4.0, 0.0, 0.0],
        [-2.0, 0.3, 0.0],
        [0.1, -2.0, 0.0],
        [1.0, 0.0, 0.0],
    ]
)
NAMES = ["a", "b", "c", "d", "e"]


def test_heatmap_rows_are_ordered_by_factor_and_size():
    ax = loadings_heatmap(LOADINGS, feature_names=NAMES, n_top=2)
    assert row_names(ax) == ["b", "c", "d", "a"]
    expected = [[1, 0, 0], [-0.5, 0.15, 0], [0.025, -1, 0], [0, 0.5, 0]]
    assert mesh_of(ax).tolist() == pytest.approx(np.array(expected))
    assert column_names(ax) == ["1", "2", "3"]
    assert ax.yaxis_inverted()
    assert ax.collections[0].get_clim() == (-1, 1)


def test_heatmap_equals_a_brute_force_selection():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(60, 6)) * (rng.random((60, 6)) < 0.3)
    names = [f"g{i}" for i in range(60)]
    scaled = w / np.abs(w).max(axis=0)
    blocks = [[] for _ in range(6)]
    chosen = {i for k in range(6) for i in sorted(range(60), key=lambda i: -abs(w[i, k]))[:3]}
    for i in sorted(chosen):
        blocks[int(np.argmax(np.abs(scaled[i])))].append(i)
    rows = [i for k, block in enumerate(blocks) for i in sorted(block, key=lambda i: -abs(w[i, k]))]
    ax = loadings_heatmap(torch.tensor(w), feature_names=names, n_top=3)
    assert row_names(ax) == [names[i] for i in rows]
    assert mesh_of(ax) == pytest.approx(scaled[rows])


def test_heatmap_is_unchanged_by_the_scale_of_a_factor():
    first = loadings_heatmap(LOADINGS, feature_names=NAMES)
    second = loadings_heatmap(LOADINGS * [10.0, 0.1, 3.0], feature_names=NAMES)
    assert row_names(first) == row_names(second)
    assert mesh_of(first) == pytest.approx(mesh_of(second))


def test_dots_mark_inclusion_of_at_least_one_half():
    inclusion = np.zeros_like(LOADINGS)
    inclusion[1, 0], inclusion[2, 1], inclusion[0, 1] = 0.9, 0.5, 0.49
    ax = loadings_heatmap(LOADINGS, inclusion, feature_names=NAMES, n_top=2)
    dots = {to_hex(line.get_color()): line.get_xydata().tolist() for line in ax.lines[:2]}
    assert dots["#ffffff"] == [[0.5, 0.5]]  # on the dark cell of b
    assert dots["#000000"] == [[1.5, 1.5]]


def test_a_single_factor_and_feature_are_drawn():
    ax = loadings_heatmap([[-3.0]])
    assert mesh_of(ax).tolist() == [[-1.0]]
    ax.figure.canvas.draw()


def test_fifty_factors_keep_one_named_row_per_block():
    w = np.kron(np.eye(50), np.linspace(1, 0.5, 5)[:, None])
    ax = loadings_heatmap(w, n_top=5)
    assert mesh_of(ax).shape == (250, 50)
    leaders = {str(5 * k + 1) for k in range(50)}
    assert leaders <= set(row_names(ax))


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((np.zeros((3, 2)),), {}, "all loadings are zero"),
        (([1.0, 2.0],), {}, r"loadings must have 2 dimension\(s\), got shape \(2,\)"),
        (([[np.nan, 1.0]],), {}, "loadings must be finite, got 1 NaN"),
        ((LOADINGS,), {"feature_names": ["a"]}, "feature_names must have one name for each of 5"),
        ((LOADINGS,), {"factor_names": NAMES}, "factor_names must have one name for each of 3"),
        ((LOADINGS,), {"n_top": 0}, "n_top must be a positive whole number, got 0"),
        (
            (LOADINGS, LOADINGS[:2]),
            {},
            r"inclusion has shape \(2, 3\), but the loadings have \(5, 3\)",
        ),
    ],
)
def test_bad_loadings_are_refused_before_a_figure_is_made(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        loadings_heatmap(*arguments, **options)
    assert plt.get_fignums() == []


# factor_activity


def test_activity_is_the_mean_standardised_score_in_a_staircase():
    rng = np.random.default_rng(1)
    groups = np.array(["late", "early", "middle"])[rng.integers(0, 3, 90)]
    scores = rng.normal(size=(90, 3))
    for column, group in enumerate(["early", "middle", "late"]):
        scores[groups == group, column] += 4
    ax = factor_activity(scores, groups)
    z = (scores - scores.mean(0)) / scores.std(0)
    expected = [z[groups == group].mean(0) for group in ("early", "middle", "late")]
    assert mesh_of(ax) == pytest.approx(np.array(expected))
    counts = pd.Series(groups).value_counts()
    assert row_names(ax) == [f"{g} ({counts[g]})" for g in ("early", "middle", "late")]
    limit = np.abs(expected).max()
    assert ax.collections[0].get_clim() == pytest.approx((-limit, limit))
    assert [patch.get_xy() for patch in ax.patches] == [(0, 0), (1, 1), (2, 2)]


def test_activity_does_not_depend_on_units_or_row_order():
    rng = np.random.default_rng(2)
    scores, groups = rng.normal(size=(40, 4)), np.repeat(["a", "b"], 20)
    first = factor_activity(scores, groups)
    index = rng.permutation(40)
    shifted = 5 + 3 * scores[index]
    second = factor_activity(torch.tensor(shifted), pd.Categorical(groups[index]))
    assert mesh_of(first) == pytest.approx(mesh_of(second))
    assert row_names(first) == row_names(second)


def test_groups_follow_the_order_that_is_given():
    scores = np.array([[1.0], [2.0], [3.0]])
    ax = factor_activity(scores, ["a", "b", "c"], order=["c", "a"])
    assert row_names(ax) == ["c (1)", "a (1)"]
    step = 1 / np.sqrt(2 / 3)
    assert mesh_of(ax).ravel() == pytest.approx([step, -step])


def test_one_observation_and_constant_factors_stay_at_zero():
    assert mesh_of(factor_activity([[3.0, 1.0]], ["B"])).tolist() == [[0.0, 0.0]]
    constant = factor_activity([[0.1]] * 10, ["A", "B"] * 5)  # their mean is not exactly 0.1
    assert mesh_of(constant).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("groups", "options", "error", "text"),
    [
        (["a"], {}, ValueError, "groups must have one label for each of 2 rows, got 1"),
        (["a", None], {}, ValueError, "1 of 2 rows have no group"),
        (pd.Categorical(["a", np.nan]), {}, ValueError, "1 of 2 rows have no group"),
        (["a", "b"], {"order": ["a", "z"]}, KeyError, r"order names groups \['z'\]"),
        (["a", "b"], {"order": []}, KeyError, "the groups are"),
        (["a", "b"], {"factor_names": ["f"]}, ValueError, "one name for each of 2, got 1"),
    ],
)
def test_bad_groups_are_refused(groups, options, error, text):
    with pytest.raises(error, match=text):
        factor_activity([[1.0, 2.0], [3.0, 4.0]], groups, **options)
    assert plt.get_fignums() == []


def test_no_text_is_smaller_than_eight_points(make_history):
    axes = [
        training_curve(make_history([1e5, 2.0, 1.0, 1.0, 1.0])),
        loadings_heatmap(np.kron(np.eye(50), np.ones((5, 1)))),
        factor_activity(np.eye(50), [f"group {i}" for i in range(50)]),
    ]
    for ax in axes:
        ax.figure.canvas.draw()
        words = [text for text in ax.figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in words) >= 8


def test_every_picture_can_share_a_figure(make_history):
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    assert training_curve(make_history([2.0, 1.0]), ax=axes[0]) is axes[0]
    assert loadings_heatmap(LOADINGS, ax=axes[1]) is axes[1]
    assert factor_activity([[1.0], [2.0]], ["a", "b"], ax=axes[2]) is axes[2]
    assert plt.get_fignums() == []
