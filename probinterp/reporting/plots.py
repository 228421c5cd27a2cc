"""Pictures of results: every function takes a result, and axes if you have them, and returns axes.

Nothing is drawn from a model. Axes that are passed in keep their size; without them a figure of a
fitting size is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from probinterp.criticism.pop_pc import PopPCResult
from probinterp.inference.history import FitHistory
from probinterp.reporting.arrays import as_array, as_count, as_names
from probinterp.reporting.axes import (
    BLUE,
    DIVERGING,
    GREY,
    LINE_INCHES,
    ORANGE,
    SMALL_FONT,
    VERMILION,
    height_in_inches,
    label_points,
    new_axes,
    shorten,
    tidy,
)

Array = NDArray[np.float64]


def training_curve(history: FitHistory, ax: Axes | None = None) -> Axes:
    """Training and held-out loss of every epoch, with the epoch whose weights were kept.

    The loss is the negative ELBO per observation. When the first epochs are far above the
    rest they are left off the scale, and the picture says so.

    Parameters
    ----------
    history
        What a fit returned, at least one epoch.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If there is no epoch, or no epoch has a finite loss.
    """
    frame = history.to_frame().astype(float)
    losses = frame[["loss", "heldout_loss"]].where(np.isfinite)
    if losses["loss"].notna().sum() == 0:
        raise ValueError(f"history has no epoch with a finite loss: {history}.")
    ax = new_axes(ax, 6.4, 4.0)
    marker = "o" if len(frame) == 1 else None
    ax.plot(losses.index, losses["loss"], color=BLUE, marker=marker, label="training")
    heldout = losses["heldout_loss"].dropna()
    if len(heldout):
        marker = "o" if len(heldout) <= 40 else None
        ax.plot(heldout.index, heldout, color=VERMILION, marker=marker, ms=4, label="held-out")
    ax.axvline(
        history.best_epoch, color="0.3", ls=":", label=f"weights kept: epoch {history.best_epoch}"
    )
    low, high, hidden = _loss_limits(losses)
    ax.set_ylim(low, high)
    if hidden:
        note = f"first {hidden} epoch(s) off the scale, up to {losses.max(axis=None):.4g}"
        ax.set_title(note, fontsize=9, loc="right", color="0.3")
    ax.set(xlabel="epoch", ylabel="negative ELBO per observation [nats]")
    ax.legend(frameon=False)
    tidy(ax)
    return ax


def _loss_limits(losses: pd.DataFrame) -> tuple[float, float, int]:
    """Limits that show the course of the fit, and how many early epochs exceed them.

    An early spike is cut off when it would take more than three quarters of the height.
    """
    tops = losses.max(axis=1).ffill()
    bottom, top = float(losses.min(axis=None)), float(losses.max(axis=None))
    settled = float(tops.iloc[len(tops) // 10 :].max())
    hidden = 0
    if top - bottom > 4 * (settled - bottom) > 0:
        top = settled
        hidden = int((tops > settled).sum())
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 0.05
    return bottom - margin, top + margin, hidden


def loadings_heatmap(
    loadings: Any,
    inclusion: Any = None,
    *,
    feature_names: Sequence[str] | None = None,
    factor_names: Sequence[str] | None = None,
    n_top: int = 5,
    ax: Axes | None = None,
) -> Axes:
    """Loadings of the top features of every factor, features by factors.

    Every column is divided by its largest absolute loading, so that each factor is readable.
    Each factor contributes its ``n_top`` largest absolute loadings that are not zero; a feature
    is drawn once, in the block of the factor on which its scaled loading is largest, and blocks
    are in the order of the factors, the largest loading first.

    Parameters
    ----------
    loadings
        Loadings W, shape (G, K).
    inclusion
        Inclusion probabilities, shape (G, K); cells of at least one half get a dot.
    feature_names, factor_names
        Names of rows and columns; numbers from 1 by default.
    n_top
        Features per factor.
    ax
        Where to draw; a new figure by default. Where the rows are too close for their labels,
        only the first features of each block are labelled.

    Raises
    ------
    ValueError
        If shapes and names do not fit, a value is not finite, or all loadings are zero.
    """
    w = as_array("loadings", loadings, 2, finite=True)
    features = as_names("feature_names", feature_names, w.shape[0])
    factors = as_names("factor_names", factor_names, w.shape[1])
    scale = np.abs(w).max(axis=0)
    scaled = w / np.where(scale > 0, scale, 1.0)
    rows, ranks = _top_rows(scaled, as_count("n_top", n_top))
    ax = new_axes(ax, _width(len(factors)), min(1.4 + 1.25 * LINE_INCHES * len(rows), 24.0))
    mesh = ax.pcolormesh(scaled[rows], cmap=DIVERGING, vmin=-1, vmax=1)
    if inclusion is not None:
        included = _same_shape("inclusion", inclusion, w)[rows] >= 0.5
        y, x = np.nonzero(included)
        ax.plot(x + 0.5, y + 0.5, ".", color="black", ms=2.5, label="inclusion ≥ 0.5")
    for start in np.flatnonzero(ranks == 0)[1:]:
        ax.axhline(start, color="0.6", lw=0.6)
    labelled = _rows_with_room(ranks, int(height_in_inches(ax) / LINE_INCHES))
    ax.set_yticks(labelled + 0.5, [shorten(features[rows[i]]) for i in labelled])
    _label_columns(ax, factors)
    ax.set(xlabel="factor", ylabel=f"top {n_top} features of each factor")
    ax.invert_yaxis()
    dots = "" if inclusion is None else "\n(dot: inclusion probability ≥ 0.5)"
    _color_bar(ax, mesh, f"loading / largest |loading| of the factor{dots}")
    return ax


def _same_shape(name: str, values: Any, like: Array) -> Array:
    array = as_array(name, values, 2, finite=True)
    if array.shape != like.shape:
        raise ValueError(f"{name} has shape {array.shape}, but the loadings have {like.shape}.")
    return array


def _top_rows(scaled: Array, n_top: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to draw, ordered by factor and size, and the rank of each within its block."""
    size = np.abs(scaled)
    top = np.argsort(-size, axis=0, kind="stable")[:n_top]
    chosen = np.unique(top[np.take_along_axis(size, top, axis=0) > 0])
    if len(chosen) == 0:
        raise ValueError("all loadings are zero: there is no feature to show.")
    home = size[chosen].argmax(axis=1)
    order = np.lexsort((-size[chosen, home], home))
    starts = np.searchsorted(home[order], home[order])
    return chosen[order], np.arange(len(order)) - starts


def _rows_with_room(ranks: NDArray[np.intp], capacity: int) -> NDArray[np.intp]:
    """All rows if they fit, else the same number of leading rows of every block."""
    depth = int(ranks.max()) + 1
    while depth > 1 and len(ranks) > capacity and _closest(ranks < depth) * capacity < len(ranks):
        depth -= 1
    rows = np.flatnonzero(ranks < depth)
    return rows


def _width(n_columns: int) -> float:
    return float(np.clip(3.6 + 0.32 * n_columns, 4.8, 18.0))
