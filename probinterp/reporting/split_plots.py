"""Pictures of checks on several splits of the data: folds, and disjoint blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array, as_count, as_names
from probinterp.reporting.axes import (
    BAND,
    BLUE,
    LINE_INCHES,
    SMALL_FONT,
    VERMILION,
    name_rows,
    new_axes,
    set_heading,
    spaced,
    tidy,
)
from probinterp.reporting.calibration_plots import departure, draw_ecdfs, ecdf
from probinterp.reporting.uniform_band import uniform_band

if TYPE_CHECKING:
    from probinterp.criticism.cross import CrossResult
    from probinterp.criticism.divided import DividedResult

Array = NDArray[np.float64]
FEW_FOLDS = 12  # up to which effect sizes are written beside the points


def fold_p_values(result: CrossResult, *, alpha: float = 0.05, ax: Axes | None = None) -> Axes:
    """One-sided p-value of every fold, with the regions where its two-sided check rejects.

    The folds share most of their data: how their p-values are spread is no test of anything. The
    heading has the p-value that is valid for all of them together.

    Parameters
    ----------
    result
        Cross-validated check of one value.
    alpha
        Two-sided level.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the discrepancy has several values, or ``alpha`` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}.")
    if result.p_value.ndim > 1:
        raise ValueError(
            f"fold_p_values shows one value, but {result.folds[0].discrepancy} has "
            f"{result.p_value.shape[1]}; use fold_effects."
        )
    p = as_array("p_randomised", result.p_randomised, 1, finite=True)
    z = as_array("z", result.z, 1)
    rejected = as_array("p_two_sided", result.p_two_sided, 1) <= alpha
    numbers = np.arange(1, len(p) + 1)
    ax = new_axes(ax, 6.4, 3.8)
    ax.axhspan(alpha / 2, 1 - alpha / 2, color=BAND, lw=0, label=f"accepted at {alpha:g}")
    ax.plot(numbers[~rejected], p[~rejected], "o", color=BLUE, ms=7)
    ax.plot(numbers[rejected], p[rejected], "o", color=VERMILION, ms=7)
    if len(p) <= FEW_FOLDS and not np.isnan(z).any():
        _write_effects(ax, numbers, p, z)
    ax.set(xlabel="fold", ylabel="p (replicated ≥ held-out)", ylim=(-0.03, 1.03))
    ax.set_xlim(0.4, len(p) + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_heading(
        ax,
        f"{spaced(result.folds[0].discrepancy)}: {len(p)} folds, {rejected.sum()} rejected",
        f"together p = {result.p_pooled.item():.3g} (twice the average two-sided p), "
        f"average z {_signed(result.mean_z.item())}",
    )
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(ax)
    return ax


def _write_effects(ax: Axes, numbers: NDArray[np.intp], p: Array, z: Array) -> None:
    for number, height, effect in zip(numbers, p, z, strict=True):
        side = 8 if height < 0.9 else -14
        place: dict[str, Any] = {"xytext": (0, side), "textcoords": "offset points", "ha": "center"}
        ax.annotate(f"z {_signed(effect)}", (number, height), fontsize=SMALL_FONT, **place)


def _signed(effect: float) -> str:
    """Effect size with its sign; one draw has none."""
    return "not defined" if np.isnan(effect) else f"= {effect:+.2g}".replace("inf", "∞")


def fold_effects(
    result: CrossResult | DividedResult,
    *,
    feature_names: Sequence[str] | None = None,
    n_top: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Effect sizes of all folds or blocks for the values with the largest average effect.

    Parameters
    ----------
    result
        Check of several values, on folds or blocks.
    feature_names
        Names of the values; those of the result, or numbers from 1, by default.
    n_top
        How many values are shown, the largest absolute average on top.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the discrepancy is a single number, names do not fit, or an effect size is NaN or
        infinite.
    """
    splits = result[0]
    if result.z.ndim == 1:
        raise ValueError(
            f"fold_effects shows several values, but {splits[0].discrepancy} is a single number; "
            "use fold_p_values or block_p_values."
        )
    z = as_array("z", result.z, 2, finite=True)
    given = splits[0].labels if feature_names is None else feature_names
    names = as_names("feature_names", given, z.shape[1])
    top = np.argsort(-np.abs(z.mean(axis=0)), kind="stable")[: as_count("n_top", n_top)]
    rows = np.arange(len(top)) + 0.5
    ax = new_axes(ax, 7.2, 1.6 + 1.6 * LINE_INCHES * len(top))
    ax.axvline(0, color="0.5", lw=0.8)
    one = "fold" if hasattr(result, "folds") else "block"
    ax.plot(
        z[:, top], np.broadcast_to(rows, (len(z), len(top))), "o", color=BLUE, ms=3.5, alpha=0.6
    )
    ax.plot([], [], "o", color=BLUE, ms=3.5, alpha=0.6, label=f"one {one}")
    ax.plot(z.mean(axis=0)[top], rows, "|", color=VERMILION, ms=11, mew=2, label="average")
    name_rows(ax, [names[i] for i in top], np.arange(len(top)))
    ax.set_ylim(len(top), 0)
    ax.set_xlabel("effect size z [sd of the replicates]")
    set_heading(
        ax, f"{spaced(splits[0].discrepancy)}: the {len(top)} largest effects over {len(z)} {one}s"
    )
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(ax)
    return ax


def block_p_values(result: DividedResult, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Distribution of the p-values of disjoint blocks minus the uniform one, simultaneous band.

    Parameters
    ----------
    result
        Divided check of one value.
    level
        Probability that a correct model stays inside the band everywhere.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the discrepancy has several values, or ``level`` is not between 0 and 1.
    """
    if result.p_rank.ndim > 1:
        raise ValueError(
            f"block_p_values shows one value, but {result.blocks[0].discrepancy} has "
            f"{result.p_rank.shape[1]}; use fold_effects."
        )
    p = as_array("p_rank", result.p_rank, 1, finite=True)
    low, high = uniform_band(len(p), level)
    ax = new_axes(ax, 6.0, 4.0)
    curve = ecdf(p)
    draw_ecdfs(ax, {"blocks": curve}, low, high, level)
    ax.plot(p, np.zeros(len(p)), "|", color="black", ms=8, mew=0.8)
    ax.set(xlabel="rank p-value of a block", ylabel="ECDF − uniform")
    set_heading(
        ax,
        f"{spaced(result.blocks[0].discrepancy)}: {len(p)} blocks, Kolmogorov-Smirnov distance "
        f"{result.ks_distance.item():.2g}, p = {result.p_value.item():.3g}",
        departure(curve, low, high, level),
    )
    return ax
