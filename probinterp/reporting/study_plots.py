"""Pictures of several studies: shared and specific factors, their activity and variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array, as_count, as_names
from probinterp.reporting.axes import (
    BLUE,
    CHARACTER_INCHES,
    SERIES,
    SMALL_FONT,
    name_rows,
    new_axes,
    shorten,
    size_in_inches,
    tidy,
)
from probinterp.reporting.plots import loadings_heatmap

Array = NDArray[np.float64]
Index = NDArray[np.intp]

SHARED = -1
SHARED_NAME = "shared"
ABSENT = "0.9"  # where a factor does not exist
NOISE = "0.8"
MOST_POINTS = 150  # of a study in a panel; quantiles are of all
FAR = 1.0  # how far an axis reaches beyond most scores, in units of their range
PANELS_A_ROW = 4
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def plot_block_loadings(
    effects: Any,
    names: Sequence[str],
    block: Any,
    study_names: Sequence[str],
    *,
    feature_names: Sequence[str] | None = None,
    n_top: int = 5,
    quantity: str = "effect",
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the top features of every factor, columns grouped by block.

    Columns are ordered by block, the shared one first; a bar and a title above them say which
    study they belong to. Rows and scales are those of :func:`loadings_heatmap`.

    Parameters
    ----------
    effects
        Decoded effects or loadings, shape (G, K).
    names
        Names of the factors, length K.
    block
        Study that each factor is specific to, -1 for shared, shape (K,).
    study_names
        Names of the studies, length M.
    feature_names
        Names of the features; numbers from 1 by default.
    n_top
        Features per factor.
    quantity
        What ``effects`` hold, in one word for the colour bar.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If shapes and names do not fit, a block is not that of a study, a value is not finite, or
        all effects are zero.
    """
    values = as_array("effects", effects, 2, finite=True)
    studies = _study_names(study_names)
    blocks = _indices("block", block, values.shape[1], len(studies), least=SHARED)
    columns = as_names("names", names, values.shape[1])
    order = np.argsort(blocks, kind="stable")
    ax = loadings_heatmap(
        values[:, order],
        feature_names=feature_names,
        factor_names=[columns[k] for k in order],
        n_top=n_top,
        quantity=quantity,
        ax=ax,
    )
    _title_blocks(ax, blocks[order], studies)
    return ax


def _title_blocks(ax: Axes, blocks: Index, studies: list[str]) -> None:
    """Separate blocks of columns by lines, with a coloured bar and a title above each."""
    found, starts, sizes = np.unique(blocks, return_index=True, return_counts=True)
    titles = [shorten(_block_name(m, studies)) for m in found]
    width, height = size_in_inches(ax)
    room = 0.7 * width * sizes / len(blocks)  # the rest is for row names and the colour bar
    slanted = any(len(t) * CHARACTER_INCHES > r for t, r in zip(titles, room, strict=True))
    align, angle = ("left", 40) if slanted else ("center", 0)
    above = ax.get_xaxis_transform()
    for m, start, size, title in zip(found, starts, sizes, titles, strict=True):
        if start:
            ax.axvline(start, color="black", lw=1.2)
        place = (start + 0.08, 1 + 0.04 / height), size - 0.16, 0.07 / height
        bar = Rectangle(*place, color=block_color(m), lw=0, transform=above, clip_on=False)
        ax.add_patch(bar)
        middle = (start + size / 2, 1 + 0.16 / height)
        ax.annotate(
            title,
            middle,
            xycoords=above,
            fontsize=SMALL_FONT,
            va="bottom",
            rotation_mode="anchor",
            ha=align,
            rotation=angle,
            annotation_clip=False,
        )


def plot_activity(
    scores: Any,
    names: Sequence[str],
    study: Any,
    study_names: Sequence[str],
    block: Any,
    *,
    max_factors: int = 12,
) -> Figure:
    """Scores of factors in every study, one panel per factor, studies from top to bottom.

    Points are observations, at most 150 a study, drawn at random; boxes reach from the first to
    the third quartile of all of them, lines from the 5 % to the 95 % quantile. Studies that do not
    have a factor are grey. A triangle at the edge is an observation far outside.

    Parameters
    ----------
    scores
        Posterior means of the factors, shape (N, K).
    names
        Names of the factors, length K.
    study
        Study of each observation, shape (N,).
    study_names
        Names of the studies, length M.
    block
        Study that each factor is specific to, -1 for shared, shape (K,).
    max_factors
        Panels at most. Where there are more factors the first ones of every block are shown, and
        the picture says so.

    Raises
    ------
    ValueError
        If shapes and names do not fit, an index is not that of a study, or a score is not finite.
    """
    import matplotlib.pyplot as plt

    z = as_array("scores", scores, 2, finite=True)
    studies, factors = _study_names(study_names), as_names("names", names, z.shape[1])
    label = _indices("study", study, len(z), len(studies), least=0)
    blocks = _indices("block", block, z.shape[1], len(studies), least=SHARED)
    shown = _first_of_blocks(blocks, as_count("max_factors", max_factors))
    n_columns = min(PANELS_A_ROW, len(shown))
    n_rows = -(-len(shown) // n_columns)
    longest = max(map(len, studies)) * CHARACTER_INCHES
    size = longest + 1.0 + 1.75 * n_columns, 0.6 + n_rows * (0.55 + 0.24 * len(studies))
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=size,
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels = grid.ravel()
    for ax, k in zip(panels, shown, strict=False):
        rows = [z[label == m, k] for m in range(len(studies))]
        _activity_panel(ax, rows, int(blocks[k]))
        ax.set_title(shorten(factors[k], 24), fontsize=9, loc="left")
    for row in grid:
        name_rows(row[0], studies, np.arange(len(studies)))
    panels[0].set_ylim(len(studies), 0)
    _show_far_ones(panels[: len(shown)], z, label, blocks, shown)
    for ax in panels[len(shown) - n_columns : len(shown)]:  # the lowest of every column
        ax.tick_params(axis="x", labelbottom=True, labelsize=SMALL_FONT)
    for ax in panels[len(shown) :]:
        ax.remove()
    figure.supxlabel("factor score (posterior mean)", fontsize=9)
    if len(shown) < len(blocks):
        note = f"{len(shown)} of {len(blocks)} factors, the first of every block"
        figure.suptitle(note, fontsize=9, color="0.3", ha="right", x=0.99)
    return figure


def _first_of_blocks(blocks: Index, n_most: int) -> Index:
    """Factors to show, in their order: the first of every block before the second of any."""
    rank = np.array([(blocks[:k] == m).sum() for k, m in enumerate(blocks)])
    return np.sort(np.argsort(rank, kind="stable")[:n_most])


def _show_far_ones(panels: Any, z: Array, label: Index, blocks: Index, shown: Index) -> None:
    """Limit the shared axis to where most scores are; triangles at its edges for those beyond."""
    existing = (blocks == SHARED) | (blocks == label[:, None])  # (N, K)
    here = z[:, shown][existing[:, shown]]
    first, third = np.quantile(here, (QUANTILES[0], QUANTILES[-1]))
    reach = FAR * (third - first)
    low, high = max(here.min(), first - reach), min(here.max(), third + reach)
    margin = 0.04 * (high - low) or 1.0
    for ax, k in zip(panels, shown, strict=True):
        for edge, marker, beyond in ((low, "<", z[:, k] < low), (high, ">", z[:, k] > high)):
            rows = label[beyond & existing[:, k]]
            if not len(rows):
                continue
            ax.plot(np.full(len(rows), edge), rows + 0.5, marker, color="firebrick", ms=5, mew=0)
    panels[0].set_xlim(low - margin, high + margin)


def _activity_panel(ax: Axes, scores: list[Array], block: int) -> None:
    """Points, boxes and whiskers of a factor in every study, grey where it does not exist."""
    source, color = np.random.default_rng(0), block_color(block)
    ax.axvline(0, color="0.6", lw=0.6)
    for m, values in enumerate(scores):
        if block not in (SHARED, m):
            ax.axhspan(m, m + 1, color=ABSENT, lw=0)
            continue
        if len(values) == 0:
            continue
        some = source.permutation(values)[:MOST_POINTS]
        heights = m + 0.5 + source.uniform(-0.28, 0.28, len(some))
        ax.plot(some, heights, ".", color=color, ms=4, mew=0, alpha=0.6, rasterized=True)
        low, first, middle, third, high = np.quantile(values, QUANTILES)
        ax.hlines(m + 0.5, low, high, color="black", lw=0.8)
        box = Rectangle((first, m + 0.32), third - first, 0.36, fc="white", ec="black", lw=0.8)
        box.set_zorder(3)
        ax.add_patch(box)
        ax.vlines(middle, m + 0.32, m + 0.68, color="black", lw=1.6, zorder=4)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    tidy(ax)
    ax.grid(visible=False, axis="y")


def plot_variance_explained(
    shares: Any,
    study_names: Sequence[str],
    block_names: Sequence[str] = (SHARED_NAME, "specific", "noise"),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Stacked bars of the shares of variance in every study, studies from top to bottom.

    Parameters
    ----------
    shares
        Share of every part in every study, shape (M, B), rows sum to 1. A negative share, of a
        block that cancels another, stands left of zero.
    study_names
        Names of the studies, length M.
    block_names
        Names of the parts, length B; a part called noise is grey.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If names do not fit, a share is not finite, or a row does not sum to 1.
    """
    values = as_array("shares", shares, 2, finite=True)
    studies = as_names("study_names", study_names, len(values))
    parts = as_names("block_names", block_names, values.shape[1])
    sums = values.sum(axis=1)
    if (np.abs(sums - 1) > 1e-3).any():
        raise ValueError(f"the shares of every study must sum to 1, got {sums.round(3).tolist()}.")
    height = 1.2 + 0.34 * len(studies)
    ax = new_axes(ax, 6.4, height)
    palette = iter(SERIES * (1 + len(parts) // len(SERIES)))
    rows: Array = np.arange(len(studies), dtype=np.float64) + 0.5
    positive = np.clip(values, 0, None)
    starts = np.where(values > 0, positive.cumsum(axis=1) - positive, 0.0)
    for part, width, left in zip(parts, values.T, starts.T, strict=True):
        color = NOISE if part == "noise" else next(palette)
        ax.barh(rows, width, 0.7, left=left, color=color, ec="white", lw=0.6, label=part)
        _write_shares(ax, rows, width, left, "black" if part == "noise" else "white")
    name_rows(ax, studies, np.arange(len(studies)))
    ax.set(xlim=(min(0.0, float(values.min()) * 1.05), positive.sum(axis=1).max()))
    ax.set_ylim(len(studies), 0)
    ax.set_xlabel("share of variance within the study")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(ax)
    ax.grid(visible=False)
    return ax


def _write_shares(ax: Axes, rows: Array, width: Array, left: Array, color: str) -> None:
    """Write shares into bars that are wide enough, in per cent."""
    for row, share, start in zip(rows, width, left, strict=True):
        if share >= 0.07:
            text = f"{100 * share:.0f} %"
            place = (start + share / 2, row)
            ax.annotate(text, place, ha="center", va="center", fontsize=SMALL_FONT, color=color)


def block_color(block: int) -> str:
    """Blue for shared factors; the others' colours repeat after six studies."""
    return BLUE if block == SHARED else SERIES[1 + block % (len(SERIES) - 1)]


def _block_name(block: int, studies: list[str]) -> str:
    return SHARED_NAME if block == SHARED else studies[block]


def _study_names(names: Sequence[str]) -> list[str]:
    """Names as strings; at least one, and different from each other."""
    studies = [str(name) for name in names]
    if len(studies) == 0 or len(set(studies)) < len(studies):
        raise ValueError(f"study_names must be different from each other, got {studies}.")
    return studies


def _indices(name: str, values: Any, length: int, n_studies: int, *, least: int) -> Index:
    """Study indices from ``least`` to M - 1, one for each of ``length``."""
    array = as_array(name, values, 1, finite=True)
    if len(array) != length:
        raise ValueError(f"{name} must have one study for each of {length}, got {len(array)}.")
    if (array != array.round()).any() or array.min() < least or array.max() >= n_studies:
        raise ValueError(
            f"{name} must hold whole numbers from {least} to {n_studies - 1}, "
            f"got {np.unique(array).tolist()}."
        )
    return array.astype(np.intp)
