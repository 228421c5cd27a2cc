"""Where and how pictures are drawn: axes, colours, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.collections import QuadMesh
    from matplotlib.text import Annotation

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#767676"
SERIES = (BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "black")  # curves in order
BAND = "0.88"  # where a correct model lies
DIVERGING = "RdBu_r"
SMALL_FONT = 8.0  # points; nothing is set smaller
LINE_INCHES = 1.25 * SMALL_FONT / 72  # height of one line of small text
CHARACTER_INCHES = 0.65 * SMALL_FONT / 72  # width of one character of small text


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """``ax``, or axes on a new constrained-layout figure of ``width`` by ``height`` inches.

    A new figure belongs to pyplot, so that notebooks show it; close it, or hand it to
    :func:`probinterp.reporting.write_report`, which does.

    Raises
    ------
    TypeError
        If ``ax`` is neither None nor matplotlib axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib Axes or None, got {type(ax).__name__}.")
    return ax


def tidy(ax: Axes) -> None:
    """Drop the top and right frame and put a pale grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)


def size_in_inches(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes before the layout makes room for labels."""
    box = ax.get_window_extent()
    dpi = ax.figure.canvas.figure.dpi
    return float(box.width / dpi), float(box.height / dpi)


def name_columns(ax: Axes, names: Sequence[str]) -> None:
    """Name the columns 0.5, 1.5, ... of a heat map, upright if too long, thinned if too many."""
    room = size_in_inches(ax)[0] / len(names)
    texts = [shorten(name) for name in names]
    upright = max(map(len, texts)) * CHARACTER_INCHES > 0.75 * room
    step = int(np.ceil(LINE_INCHES / room)) if upright else 1
    ax.set_xticks(np.arange(len(texts))[::step] + 0.5, texts[::step], fontsize=SMALL_FONT)
    ax.tick_params(axis="x", length=2, rotation=90 if upright else 0)


def name_rows(ax: Axes, names: Sequence[str], importance: NDArray[np.intp]) -> None:
    """Name the rows 0.5, 1.5, ... of a heat map; where room is short, the important ones first.

    ``importance`` has one number per row, 0 for the most important ones.
    """
    step = len(names) * LINE_INCHES / size_in_inches(ax)[1]
    rows: list[int] = []
    for row in np.argsort(importance, kind="stable"):
        if step <= 1 or all(abs(row - other) >= step for other in rows):
            rows.append(int(row))
    rows.sort()
    ax.set_yticks(np.array(rows) + 0.5, [shorten(names[i]) for i in rows], fontsize=SMALL_FONT)
    ax.tick_params(axis="y", length=2)


def set_heading(ax: Axes, *lines: str) -> None:
    """Title that starts at the left and breaks its lines at the width of the axes."""
    width = max(20, int(size_in_inches(ax)[0] / (0.5 * 10 / 72)))
    ax.set_title("\n".join(fill(line, width) for line in lines), fontsize=10, loc="left")


def color_bar(ax: Axes, mesh: QuadMesh, label: str) -> None:
    """Colour bar beside ``ax`` that stays about three inches high on tall axes."""
    width, height = size_in_inches(ax)
    shrink = min(1.0, max(3.0, 0.3 * width) / height)
    bar = ax.figure.colorbar(mesh, ax=ax, shrink=shrink, aspect=18, pad=0.03)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=SMALL_FONT)


def shorten(text: str, length: int = 40) -> str:
    """``text`` on one line with an ellipsis in its middle if it is longer than ``length``.

    Dollar signs are escaped: a name is never read as a formula.
    """
    text = " ".join(text.split())
    if len(text) > length:
        head = (length - 1) // 2
        text = f"{text[:head]}…{text[-(length - 1 - head) :]}"
    return text.replace("$", r"\$")


def spaced(name: str) -> str:
    """Name of a function as words; dollar signs are never read as formulas."""
    return name.replace("_", " ").replace("$", r"\$")


def spread(
    positions: NDArray[np.float64], gap: float, low: float, high: float
) -> NDArray[np.float64]:
    r"""Closest positions, in the least-squares sense, that are at least ``gap`` apart.

    With :math:`u_i = y_i - i\,g` the problem is an isotonic regression, solved by pooling
    adjacent violators; clipping its solution gives the solution within bounds. Where the
    interval is too short for all of them the gap shrinks to what fits.

    Parameters
    ----------
    positions
        Wanted positions in increasing order, shape (n,).
    gap
        Smallest distance between neighbours.
    low, high
        Bounds of the result.
    """
    n = len(positions)
    gap = min(gap, (high - low) / max(n - 1, 1))
    steps = gap * np.arange(n)
    blocks: list[tuple[float, int]] = []
    for wanted in positions - steps:
        mean, count = float(wanted), 1
        while blocks and blocks[-1][0] > mean:
            last_mean, last_count = blocks.pop()
            mean = (mean * count + last_mean * last_count) / (count + last_count)
            count += last_count
        blocks.append((mean, count))
    pooled = np.concatenate([np.full(count, mean) for mean, count in blocks])
    return np.clip(pooled, low, high - (n - 1) * gap) + steps


def label_points(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    chosen: NDArray[np.intp],
    texts: Sequence[str],
    side: str,
) -> list[Annotation]:
    """Name chosen points of a rising curve in a column beside it, without overlap.

    Names are joined to their points by thin lines. Limits and scales of the axes must be final.

    Parameters
    ----------
    x, y
        All points of the curve, which the names keep clear of, shape (n,).
    chosen
        Indices of the points to name, at its upper end for ``side="left"``, its lower end for
        ``side="right"``, shape (m,).
    texts
        Their names, length m.
    side
        Where the column is: ``"left"`` or ``"right"`` of the points beside it.
    """
    sign = -1 if side == "left" else 1
    place = (ax.transScale + ax.transLimits).transform(np.column_stack([x, y]))
    order = np.argsort(y[chosen], kind="stable")
    gap = 1.1 * LINE_INCHES / size_in_inches(ax)[1]
    heights = spread(place[chosen[order], 1], gap, 0.03, 0.97)
    beside = place[:, 1] >= heights[0] - gap if sign < 0 else place[:, 1] <= heights[-1] + gap
    column = sign * ((sign * place[beside, 0]).max() + 0.05)
    room = (column if sign < 0 else 1 - column) * size_in_inches(ax)[0]
    length = int(max(8, room / CHARACTER_INCHES))
    return [
        ax.annotate(
            shorten(texts[i], min(40, length)),
            (x[chosen[i]], y[chosen[i]]),
            xytext=(column, height),
            textcoords="axes fraction",
            fontsize=SMALL_FONT,
            ha="right" if sign < 0 else "left",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "0.6",
                "linewidth": 0.6,
                "shrinkB": 2,
                "relpos": (1 if sign < 0 else 0, 0.5),  # no line runs through a name
            },
        )
        for i, height in zip(order, heights, strict=True)
    ]
