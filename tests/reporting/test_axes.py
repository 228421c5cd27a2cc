import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.optimize import minimize

from probinterp.reporting.axes import (
    label_points,
    name_columns,
    name_rows,
    new_axes,
    set_heading,
    shorten,
    spread,
)


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def overlapping(texts, renderer):
    return overlapping_boxes([text.get_window_extent(renderer) for text in texts])


def text_box(annotation, renderer):
    """Extent of the words of an annotation, without its line."""
    return Text.get_window_extent(annotation, renderer)


def overlapping_boxes(boxes):
    return [
        (a, b)
        for a, b in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]


def test_spread_solves_the_constrained_least_squares_problem():
    wanted = np.array([0.05, 0.30, 0.31, 0.33, 0.80, 0.99])
    found = spread(wanted, 0.1, 0.0, 1.0)
    gaps = [{"type": "ineq", "fun": lambda y, i=i: y[i + 1] - y[i] - 0.1} for i in range(5)]
    best = minimize(
        lambda y: ((y - wanted) ** 2).sum(), wanted, bounds=[(0, 1)] * 6, constraints=gaps
    )
    assert found == pytest.approx(best.x, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 2), min_size=1, max_size=40), st.floats(0, 0.2))
def test_spread_keeps_order_gap_and_bounds(wanted, gap):
    found = spread(np.sort(wanted), gap, 0.0, 1.0)
    room = min(gap, 1.0 / max(len(found) - 1, 1))
    assert (np.diff(found) >= room - 1e-9).all()
    assert found.min() >= -1e-9
    assert found.max() <= 1 + 1e-9


def test_spread_leaves_positions_that_are_far_apart():
    wanted = np.array([0.1, 0.5, 0.9])
    assert spread(wanted, 0.1, 0.0, 1.0) == pytest.approx(wanted, abs=1e-15)


def test_shorten_keeps_both_ends_and_reads_no_formula():
    assert shorten("CD79A") == "CD79A"
    assert shorten("a\nb  c") == "a b c"
    assert shorten("x" * 30 + "y" * 30, 11) == "x" * 5 + "…" + "y" * 5
    assert shorten("$a$") == r"\$a\$"


def test_given_axes_are_used_and_anything_else_is_refused():
    ax = Figure().subplots()
    assert new_axes(ax, 3.0, 2.0) is ax
    with pytest.raises(TypeError, match="ax must be matplotlib Axes or None, got Figure"):
        new_axes(Figure(), 3.0, 2.0)


def test_new_axes_have_the_size_asked_for():
    figure = new_axes(None, 3.0, 2.0).figure
    assert figure.get_size_inches().tolist() == [3.0, 2.0]
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("n", [1, 7, 50, 300])
def test_names_of_rows_and_columns_never_overlap(n):
    figure = Figure(figsize=(4.0, 3.0))
    ax = figure.subplots()
    ax.set(xlim=(0, n), ylim=(0, n))
    names = [f"a long name of group {i}" for i in range(n)]
    name_rows(ax, names, np.arange(n) % 5)
    name_columns(ax, names)
    renderer = drawn(figure)
    assert overlapping(ax.get_yticklabels(), renderer) == []
    assert overlapping(ax.get_xticklabels(), renderer) == []
    assert {text.get_fontsize() for text in ax.get_yticklabels()} == {8.0}


def test_important_rows_are_named_first():
    ax = Figure(figsize=(4.0, 1.0)).subplots()
    ax.set_ylim(0, 40)
    name_rows(ax, [f"g{i}" for i in range(40)], np.arange(40) % 10)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["g0", "g10", "g20", "g30", "g38"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("log", [False, True])
def test_labels_of_points_keep_clear_of_each_other_and_of_the_curve(side, log):
    figure = Figure(figsize=(7.2, 4.8))
    ax = figure.subplots()
    x = np.arange(1.0, 101.0)
    y = np.sinh((x - 50.5) / 8)
    if log:
        ax.set_yscale("symlog", linthresh=3)
    ax.set(xlim=(-4, 105), ylim=(1.3 * y[0], 1.3 * y[-1]))
    chosen = np.arange(92, 100) if side == "left" else np.arange(8)
    texts = label_points(ax, x, y, chosen, [f"a gene with a name {i}" for i in chosen], side)
    renderer = drawn(figure)
    assert overlapping_boxes([text_box(text, renderer) for text in texts]) == []
    points = ax.transData.transform(np.column_stack([x, y]))
    for text in texts:
        box = text_box(text, renderer)
        assert not any(box.contains(*point) for point in points)


def test_headings_break_at_the_width_of_the_axes():
    ax = Figure(figsize=(3.0, 2.0)).subplots()
    set_heading(ax, "one two three four five six seven eight nine ten", "last")
    lines = ax.get_title(loc="left").split("\n")
    assert lines[-1] == "last"
    assert len(lines) == 3
    assert max(map(len, lines)) <= 33
