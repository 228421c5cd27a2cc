"""Pictures of results: every function takes a result, and axes if you have them, and returns axes.

Nothing is drawn from a model. Axes that are passed in keep their size; without them a figure of a
fitting size is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array, as_count, as_names
from probinterp.reporting.axes import (
    BLUE,
    DIVERGING,
    LINE_INCHES,
    VERMILION,
    color_bar,
    name_columns,
    name_rows,
    new_axes,
    tidy,
)

if TYPE_CHECKING:
    from probinterp.inference.history import FitHistory

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
    marker = "o" if len(frame) <= 10 else None
    ax.plot(losses.index, losses["loss"], color=BLUE, marker=marker, ms=4, label="training")
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
        note = f"{hidden} early epoch(s) off the scale, up to {np.nanmax(losses.to_numpy()):.4g}"
        ax.set_title(note, fontsize=9, loc="right", color="0.3")
    ax.set(xlabel="epoch", ylabel="negative ELBO per observation [nats]")
    ax.legend(edgecolor="none", loc="upper right")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
    return ax


def _loss_limits(losses: pd.DataFrame) -> tuple[float, float, int]:
    """Limits that show the course of the fit, and how many early epochs exceed them.

    The first tenth of the epochs is cut off when it takes three quarters of the height.
    """
    tops = losses.max(axis=1)
    values = losses.to_numpy()
    bottom, top = float(np.nanmin(values)), float(np.nanmax(values))
    skip = max(1, len(tops) // 10) if len(tops) >= 5 else 0
    settled = float(tops.iloc[skip:].max())
    hidden = 0
    if top - bottom > 4 * (settled - bottom) > 0:
        top, hidden = settled, int((tops > settled).sum())
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 0.05
    return bottom - margin, top + margin, hidden


def loadings_heatmap(
    loadings: Any,
    inclusion: Any = None,
    *,
    feature_names: Sequence[str] | None = None,
    factor_names: Sequence[str] | None = None,
    n_top: int = 5,
    quantity: str = "loading",
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
        Loadings W or decoded effects, shape (G, K).
    inclusion
        Inclusion probabilities, shape (G, K); cells of at least one half get a dot.
    feature_names, factor_names
        Names of rows and columns; numbers from 1 by default.
    n_top
        Features per factor.
    quantity
        What ``loadings`` hold, in one word for the colour bar.
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
    included = None if inclusion is None else _same_shape("inclusion", inclusion, w)[rows] >= 0.5
    ax = new_axes(ax, _width(len(factors)), _height(1.25 * LINE_INCHES * len(rows)))
    mesh = ax.pcolormesh(scaled[rows], cmap=DIVERGING, vmin=-1, vmax=1)
    label = f"{quantity} / largest |{quantity}| of the factor"
    if included is not None:
        _dot(ax, included, np.abs(scaled[rows]) > 0.7)
        label += "\n(dot: inclusion probability ≥ 0.5)"
    for start in np.flatnonzero(ranks == 0)[1:]:
        ax.axhline(float(start), color="0.6", lw=0.6)
    name_rows(ax, [features[row] for row in rows], ranks)
    name_columns(ax, factors)
    ax.set(xlabel="factor", ylabel=f"features (top {n_top} of each factor)")
    ax.invert_yaxis()
    color_bar(ax, mesh, label)
    return ax


def _dot(ax: Axes, cells: NDArray[np.bool_], dark: NDArray[np.bool_]) -> None:
    """Put a dot on cells: white where the cell is dark, else black."""
    for color, chosen in (("black", cells & ~dark), ("white", cells & dark)):
        y, x = np.nonzero(chosen)
        ax.plot(x + 0.5, y + 0.5, ".", color=color, ms=3)


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


def factor_activity(
    scores: Any,
    groups: Sequence[Any] | pd.Series | pd.Categorical,
    *,
    order: Sequence[str] | None = None,
    factor_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean standardised score of every factor in every group, groups by factors.

    Scores are standardised over all observations (mean 0, standard deviation 1; a constant
    factor stays 0). A frame marks the group in which a factor is highest.

    Parameters
    ----------
    scores
        Posterior means of the factors, shape (N, K).
    groups
        Group of every observation, length N, none missing.
    order
        Groups to show, from top to bottom; by default all of them, ordered by the factor on
        which their mean is highest, which makes a staircase.
    factor_names
        Names of the columns; numbers from 1 by default.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If lengths differ, a score is not finite, or an observation has no group.
    KeyError
        If ``order`` names a group that does not occur.
    """
    z = _standardised(as_array("scores", scores, 2, finite=True))
    factors = as_names("factor_names", factor_names, z.shape[1])
    label = _group_labels(groups, len(z))
    means = pd.DataFrame(z).groupby(label.to_numpy()).mean()
    if order is None:
        home = means.to_numpy().argmax(axis=1)
        means = means.iloc[np.lexsort((-means.to_numpy().max(axis=1), home))]
    else:
        means = means.loc[_known_groups(order, means.index)]
    values, sizes = means.to_numpy(), label.value_counts()
    ax = new_axes(ax, _width(len(factors)) + 1.2, _height(0.26 * len(means)))
    limit = float(np.abs(values).max()) or 1.0
    mesh = ax.pcolormesh(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    for column, row in enumerate(values.argmax(axis=0)):
        frame = Rectangle((column, row), 1, 1, fill=False, ec="black", lw=1.2, clip_on=False)
        ax.add_patch(frame)
    names = [f"{group} ({sizes[group]:,})" for group in means.index]
    name_rows(ax, names, np.arange(len(names)))
    name_columns(ax, factors)
    ax.set(xlabel="factor", ylabel="group (n)")
    ax.invert_yaxis()
    color_bar(ax, mesh, "mean standardised score [sd]\n(frame: highest group)")
    return ax


def _standardised(scores: Array) -> Array:
    """Columns with mean 0 and deviation 1; columns constant up to rounding become 0."""
    deviation = scores.std(axis=0)
    varies = deviation > 1e-12 * np.abs(scores).max(axis=0)
    centred = np.where(varies, scores - scores.mean(axis=0), 0.0)
    return centred / np.where(varies, deviation, 1.0)


def _group_labels(groups: Any, n_obs: int) -> pd.Series:
    label = pd.Series(np.asarray(groups, dtype=object))
    if len(label) != n_obs:
        raise ValueError(f"groups must have one label for each of {n_obs} rows, got {len(label)}.")
    if missing := int(label.isna().sum()):
        raise ValueError(f"{missing} of {n_obs} rows have no group; name them or leave them out.")
    return label.astype(str)


def _known_groups(order: Sequence[str], present: pd.Index) -> list[str]:
    unknown = [group for group in order if group not in present]
    if unknown or len(order) == 0:
        raise KeyError(f"order names groups {unknown}; the groups are {sorted(present)}.")
    return list(order)


def _width(n_columns: int) -> float:
    return float(np.clip(3.6 + 0.32 * n_columns, 4.8, 18.0))


def _height(rows_inches: float) -> float:
    return float(np.clip(1.5 + rows_inches, 3.8, 24.0))
