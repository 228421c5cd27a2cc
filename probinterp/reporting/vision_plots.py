"""Pictures of a proxy in a vision tower: reconstruction, replacement, contributions, sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probinterp.reporting.arrays import as_array, as_names
from probinterp.reporting.axes import (
    BAND,
    BLUE,
    DIVERGING,
    GREY,
    SERIES,
    SMALL_FONT,
    VERMILION,
    color_bar,
    new_axes,
    set_heading,
    tidy,
)

DECISION_COLORS = {"preserves": BLUE, "changes": VERMILION, "not enough data to tell": GREY}
DODGE = 0.12  # between the series at one layer
PERCENT = 100


class Estimated(Protocol):
    """An estimate of each layer with its interval."""

    @property
    def estimate(self) -> Any: ...  # noqa: D102
    @property
    def low(self) -> Any: ...  # noqa: D102
    @property
    def high(self) -> Any: ...  # noqa: D102


class CurveLike(Protocol):
    """Accuracy by share of sources kept, with a band."""

    @property
    def kept_fraction(self) -> Any: ...  # noqa: D102
    @property
    def accuracy(self) -> Any: ...  # noqa: D102
    @property
    def low(self) -> Any: ...  # noqa: D102
    @property
    def high(self) -> Any: ...  # noqa: D102


def plot_reconstruction(
    results: Mapping[str, Estimated],
    *,
    quantity: str = "R²",
    floor: float | None = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Reconstruction of every layer with intervals, one series a proxy.

    Parameters
    ----------
    results
        Name of the proxy to estimates and intervals of the layers, (L,) each.
    quantity
        What they are, for the axis.
    floor
        Values below it are drawn at an arrow on this line, so that a bad proxy does not squeeze
        the others; None to draw everything where it is.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If there is no series, or one is not finite.
    """
    if not results:
        raise ValueError("results must hold at least one proxy, got none.")
    ax = new_axes(ax, 6.4, 3.6)
    for i, (name, result) in enumerate(results.items()):
        estimate, low, high = (
            as_array(what, getattr(result, what), 1, finite=True)
            for what in ("estimate", "low", "high")
        )
        x = np.arange(len(estimate)) + DODGE * (i - (len(results) - 1) / 2)
        color = SERIES[i % len(SERIES)]
        seen = np.full(len(estimate), True) if floor is None else estimate >= floor
        bars = np.stack([estimate - low, high - estimate]).clip(min=0)[:, seen]
        if seen.any():
            ax.errorbar(
                x[seen], estimate[seen], yerr=bars, fmt="o", ms=4, lw=1.5, color=color, label=name
            )
        if not seen.all():
            ax.plot(
                x[~seen],
                np.full((~seen).sum(), floor),
                "v",
                ms=6,
                color=color,
                clip_on=False,
                label=f"{name}: below {floor:g}" if not seen.any() else None,
            )
    ax.set_xlabel("layer")
    ax.set_ylabel(quantity)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=SMALL_FONT, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(ax)
    return ax


def plot_replacement(
    labels: Sequence[str],
    difference: Any,
    low: Any,
    high: Any,
    *,
    margin: float,
    decisions: Sequence[str],
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Change of accuracy by window, with intervals, beside the margin that was declared.

    Parameters
    ----------
    labels
        Windows and token types, length W.
    difference, low, high
        Change of accuracy and its interval, as shares, (W,) each.
    margin
        Largest loss that counts as preserved.
    decisions
        Verdict of each window, which gives its colour.
    title
        Heading.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If lengths differ.
    """
    names = list(labels)
    rows = len(names)
    if len(decisions) != rows:
        raise ValueError(f"{rows} labels need as many decisions, got {len(decisions)}.")
    values = [
        PERCENT * as_array(name, value, 1, finite=True)
        for name, value in (("difference", difference), ("low", low), ("high", high))
    ]
    if any(len(value) != rows for value in values):
        raise ValueError(f"{rows} labels need as many values, got {[len(v) for v in values]}.")
    ax = new_axes(ax, 6.4, 1.5 + 0.24 * rows)
    ax.axvspan(-PERCENT * margin, max(values[2].max(), 0) + 1, color=BAND, lw=0)
    ax.axvline(0, color="0.3", lw=0.8)
    shown: set[str] = set()
    for row, (d, lower, upper, decision) in enumerate(zip(*values, decisions, strict=True)):
        ax.errorbar(
            d,
            row,
            xerr=[[max(d - lower, 0)], [max(upper - d, 0)]],
            fmt="o",
            ms=4,
            lw=1.5,
            color=DECISION_COLORS.get(decision, "black"),
            label=None if decision in shown else decision,
        )
        shown.add(decision)
    ax.set_yticks(range(rows), names, fontsize=SMALL_FONT)
    ax.set_ylim(rows - 0.4, -0.6)
    ax.set_xlim(right=max(values[2].max(), 0) + 1)
    ax.set_xlabel(
        f"change of accuracy, percentage points (grey: within the margin of {PERCENT * margin:g})"
    )
    ax.legend(fontsize=SMALL_FONT, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(ax)
    if title:
        set_heading(ax, title)
    return ax


def plot_contributions(
    matrix: Any, *, title: str = "", sources: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Heat map of contribution scores, source layers in rows and target layers in columns.

    Parameters
    ----------
    matrix
        Scores, (L, L), or (L + 1, L) with the bias as last row; NaN where there is none.
    title
        Heading.
    sources
        Names of the rows; layer numbers by default.
    ax
        Where to draw; a new figure by default.
    """
    scores = as_array("matrix", matrix, 2)
    n_sources, n_targets = scores.shape
    default = [f"{i}" if i < n_targets else "bias" for i in range(n_sources)]
    names = default if sources is None else as_names("sources", sources, n_sources)
    outside = np.arange(n_sources)[:, None] > np.arange(n_targets)
    outside[n_targets:] = False
    shown = np.ma.masked_array(scores, outside | np.isnan(scores))
    limit = max(1.0, float(np.abs(shown).max())) if shown.count() else 1.0
    ax = new_axes(ax, 2.2 + 0.42 * n_targets, 1.5 + 0.38 * n_sources)
    mesh = ax.pcolormesh(shown, cmap=DIVERGING, vmin=-limit, vmax=limit)
    if n_targets <= 12:
        for i, j in zip(*np.nonzero(~shown.mask), strict=True):
            dark = abs(scores[i, j]) > 0.6 * limit
            ax.text(
                j + 0.5,
                i + 0.5,
                f"{scores[i, j]:.2f}",
                ha="center",
                va="center",
                fontsize=SMALL_FONT,
                color="white" if dark else "black",
            )
    ax.set_xticks(
        np.arange(n_targets) + 0.5, [str(j) for j in range(n_targets)], fontsize=SMALL_FONT
    )
    ax.set_yticks(np.arange(n_sources) + 0.5, names, fontsize=SMALL_FONT)
    ax.invert_yaxis()
    ax.set_xlabel("target layer")
    ax.set_ylabel("source layer")
    color_bar(ax, mesh, "contribution; columns sum to 1")
    if title:
        set_heading(ax, title)
    return ax


def plot_faithfulness(
    curves: Mapping[str, CurveLike],
    random: Sequence[Any] = (),
    *,
    network: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Accuracy while sources are taken away, or added, with bands and random orders.

    Parameters
    ----------
    curves
        Name of the order to its curve.
    random
        Accuracies of random orders, (T,) each, drawn in grey behind the curves.
    network
        Accuracy of the network itself, a dashed line.
    title
        Heading.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If there is no curve.
    """
    if not curves:
        raise ValueError("curves must hold at least one order, got none.")
    ax = new_axes(ax, 6.4, 3.6)
    first = next(iter(curves.values()))
    kept = PERCENT * as_array("kept_fraction", first.kept_fraction, 1, finite=True)
    for i, accuracy in enumerate(random):
        values = PERCENT * as_array("random", accuracy, 1, finite=True)
        ax.plot(kept, values, color="0.75", lw=0.7, label=None if i else "random orders", zorder=1)
    for i, (name, curve) in enumerate(curves.items()):
        low, middle, high = (
            PERCENT * as_array(what, getattr(curve, what), 1, finite=True)
            for what in ("low", "accuracy", "high")
        )
        color = SERIES[i % len(SERIES)]
        ax.fill_between(kept, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(kept, middle, "o-", ms=4, color=color, label=name)
    if network is not None:
        ax.axhline(PERCENT * network, color="black", lw=1, ls="--", label="network itself")
    ax.set_xlabel("sources kept, %")
    ax.set_ylabel("accuracy, %")
    ax.legend(fontsize=SMALL_FONT, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(ax)
    if title:
        set_heading(ax, title)
    return ax
