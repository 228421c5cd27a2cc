"""Where and how pictures are drawn: axes, colours, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.text import Annotation

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#767676"
DIVERGING = "RdBu_r"
SMALL_FONT = 8.0  # points; nothing is set smaller
LINE_INCHES = 1.25 * SMALL_FONT / 72  # height of one line of small text


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


def height_in_inches(ax: Axes) -> float:
    """Height of the axes before the layout makes room for labels."""
    return float(ax.get_window_extent().height / ax.figure.dpi)


def shorten(text: str, length: int = 32) -> str:
    """``text`` on one line with an ellipsis in its middle if it is longer than ``length``.

    Dollar signs are escaped: a name is never read as a formula.
    """
    text = " ".join(text.split())
    if len(text) > length:
        head = (length - 1) // 2
        text = f"{text[:head]}…{text[-(length - 1 - head) :]}"
    return text.replace("$", r"\$")


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
    ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], texts: Sequence[str], side: str
) -> list[Annotation]:
    """Name points in a column beside them, joined by thin lines, without overlap.

    Limits and scales of the axes must be final. ``side`` is ``"left"``, labels end left of the
    leftmost point, or ``"right"``, labels begin right of the rightmost point.
    """
    order = np.argsort(y, kind="stable")
    place = (ax.transScale + ax.transLimits).transform(np.column_stack([x, y])[order])
    gap = 1.1 * LINE_INCHES / height_in_inches(ax)
    heights = spread(place[:, 1], gap, 0.03, 0.97)
    sign = -1 if side == "left" else 1
    column = (place[:, 0].min() if side == "left" else place[:, 0].max()) + sign * 0.06
    return [
        ax.annotate(
            shorten(texts[i]),
            (x[i], y[i]),
            xytext=(column, height),
            textcoords="axes fraction",
            fontsize=SMALL_FONT,
            ha="right" if side == "left" else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 2},
        )
        for i, height in zip(order, heights, strict=True)
    ]
