"""Picture of the stability of factors, shared and specific, over refits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array
from probinterp.reporting.axes import LINE_INCHES, SMALL_FONT, name_rows, shorten, tidy
from probinterp.reporting.study_plots import SHARED, block_color

if TYPE_CHECKING:
    from probinterp.inference.stability import Stability

Array = NDArray[np.float64]
Index = NDArray[np.intp]

ROUNDING = 1e-6  # of scores in single precision


def plot_stability(
    stability: Stability,
    study_names: Sequence[str] | None = None,
    *,
    threshold: float = 0.8,
    same_factor: float = 0.7,
) -> Figure:
    """How every factor comes back in refits: correlations on the left, the score on the right.

    A point is the match in one refit, hollow where it lies in another block; the score is the
    share of refits with a match in the same block above the dashed line. Factors whose score is
    below the threshold are pale.

    Parameters
    ----------
    stability
        Result of refits.
    study_names
        Names of the studies; ``study0`` and so on by default.
    threshold
        Score from which on a factor counts as stable.
    same_factor
        Correlation from which on a match counts.

    Raises
    ------
    ValueError
        If a threshold is not between 0 and 1, or there is no factor or no name of a study.
    """
    import matplotlib.pyplot as plt

    for name, value in {"threshold": threshold, "same_factor": same_factor}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
    r = as_array("correlation", stability.correlation, 2, finite=True)
    score = as_array("recovered", stability.recovered, 1, finite=True)
    same = as_array("same_block", stability.same_block, 2) > 0
    names = stability.reference.named(study_names)
    found = stability.reference.block
    blocks = np.full(len(names), SHARED) if found is None else np.asarray(found)
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(6.8, 1.3 + 1.5 * LINE_INCHES * len(names)),
        width_ratios=(2, 1),
        sharey=True,
        layout="constrained",
    )
    _correlations(left, r, same, blocks)
    left.axvline(same_factor, color="black", ls="--", lw=0.8)
    left.set(xlabel=f"|r| with the match in a refit (n = {len(r)})", xlim=(-0.03, 1.03))
    _scores(right, score, blocks, threshold)
    name_rows(left, names, np.arange(len(names)))
    left.set_ylim(len(names), 0)
    key = _stability_key(stability.reference.block_names(study_names), blocks, same)
    if key:
        style: dict[str, Any] = {"ncols": 4, "frameon": False, "fontsize": SMALL_FONT}
        figure.legend(handles=key, loc="outside upper left", **style)
    return figure


def _correlations(ax: Axes, r: Array, same: NDArray[np.bool_], blocks: Index) -> None:
    style: dict[str, Any] = {"ms": 4, "ls": "none", "marker": "o", "clip_on": False}
    offsets = np.linspace(-0.25, 0.25, len(r)) if len(r) > 1 else np.zeros(1)
    for k, m in enumerate(blocks):
        style["color"] = block_color(m)
        heights, own = k + 0.5 + offsets, same[:, k]
        ax.plot(r[own, k], heights[own], mew=0, **style)
        ax.plot(r[~own, k], heights[~own], mfc="white", **style)
    for k in range(1, len(blocks)):
        if blocks[k] != blocks[k - 1]:
            ax.axhline(k, color="0.6", lw=0.6)
    tidy(ax)


def _scores(ax: Axes, score: Array, blocks: Index, threshold: float) -> None:
    rows = np.arange(len(score)) + 0.5
    for row, value, m in zip(rows, score, blocks, strict=True):
        alpha = 1.0 if value >= threshold - ROUNDING else 0.35
        ax.barh(row, value, 0.6, color=block_color(m), alpha=alpha)
        ax.annotate(
            f"{value:.2f}",
            (1.06, row),
            fontsize=SMALL_FONT,
            va="center",
            xycoords=ax.get_yaxis_transform(),
            annotation_clip=False,
        )
    ax.axvline(threshold, color="black", ls="--", lw=0.8)
    ax.set(xlabel="stability score", xlim=(0, 1), xticks=(0, 0.5, 1))
    tidy(ax)
    ax.tick_params(axis="y", length=0)


def _stability_key(
    block_names: list[str] | None, blocks: Index, same: NDArray[np.bool_]
) -> list[Artist]:
    """Blocks in the order in which they come, and what hollow points are."""
    named = {} if block_names is None else dict(zip(block_names, blocks, strict=True))
    key: list[Artist] = [
        Patch(color=block_color(m), label=shorten(name, 24)) for name, m in named.items()
    ]
    if not same.all():
        style: dict[str, Any] = {"marker": "o", "color": "0.3", "mfc": "white", "ms": 4}
        key.append(Line2D([], [], ls="none", label="in another block", **style))
    return key
