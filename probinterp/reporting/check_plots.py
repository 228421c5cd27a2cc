"""Pictures of predictive checks: what the model replicates, and where the held-out data lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from probinterp.criticism.verdict import resolution
from probinterp.criticism.wording import counted, plural
from probinterp.reporting.arrays import as_array, as_count, as_names
from probinterp.reporting.axes import (
    BLUE,
    GREY,
    LINE_INCHES,
    VERMILION,
    label_points,
    name_rows,
    new_axes,
    set_heading,
    spaced,
    tidy,
)

if TYPE_CHECKING:
    from probinterp.criticism.result import PopPCResult

Array = NDArray[np.float64]
INTERVAL = (5.0, 95.0)  # percentiles of the replicates that the interval picture shows
MOST_BINS = 40
WIDE = 20.0  # effect sizes beyond this are drawn on a scale that is logarithmic outside ±3
WIDE_SCALE = "\nlogarithmic beyond ±3"
LINEAR, ORDERS, MOST_TICKS = 3.0, 16, 15


def pop_pc_distribution(result: PopPCResult, ax: Axes | None = None) -> Axes:
    """Histogram of the replicated discrepancies with the held-out value.

    The title gives the p-values, the effect size z and the kind of the check. For a realised
    check the held-out discrepancy depends on the draw and is a second histogram.

    Parameters
    ----------
    result
        Check with one value per draw.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the result has one value per feature, or a value is infinite.
    """
    if result.uniform.ndim != 0:
        raise ValueError(
            f"pop_pc_distribution shows one value per draw, but {result.discrepancy} has shape "
            f"{tuple(result.uniform.shape)}; use pop_pc_features or pop_pc_intervals."
        )
    replicated = as_array("replicated", result.replicated, 1, finite=True)
    heldout = as_array("heldout", result.heldout, 1, finite=True)
    ax = new_axes(ax, 6.4, 4.2)
    bins = _bins(replicated)
    ax.hist(replicated, bins=bins, color=BLUE, alpha=0.75, label="replicated")
    if len(heldout) == 1:
        text = f"{_data(result)}: {heldout[0]:.5g}"
        ax.axvline(heldout[0], color=VERMILION, lw=2, label=text)
    else:
        text = f"{_data(result)}, under each draw"
        ax.hist(heldout, bins=_bins(heldout), histtype="step", color=VERMILION, lw=2, label=text)
    ax.set(xlabel=spaced(result.discrepancy), ylabel=f"draws (of {result.n_draws})")
    set_heading(ax, _kind(result), _numbers(result))
    ax.legend(frameon=False)
    tidy(ax)
    return ax


def _bins(replicated: Array) -> int | list[float]:
    """Number of bins; edges around every number where few whole numbers are all there is."""
    low, high = replicated.min(), replicated.max()
    if high - low < MOST_BINS and (replicated == np.round(replicated)).all():
        return np.arange(low - 0.5, high + 1).tolist()
    number = int(np.clip(np.sqrt(len(replicated)), 8, MOST_BINS))
    return number if high > low else 9  # an odd number centres the only bar on its value


def _data(result: PopPCResult) -> str:
    return "held-out" if result.check == "pop-pc" else "data of the fit"


def _kind(result: PopPCResult) -> str:
    """Kind of the check in words, with a reservation where its p-value is not uniform."""
    check = "Pop-PC on held-out data" if result.check == "pop-pc" else "PPC on the data of the fit"
    kind = result.kind.replace("plugin", "plug-in")
    return f"{check}, {kind}" + ("" if result.calibrated else ", not calibrated")


def _numbers(result: PopPCResult) -> str:
    p, floor = result.p_value.item(), 1 / result.n_draws
    one_sided = f"< {floor:.2g}" if p < floor else f"= {p:.3g} ± {result.mc_error.item():.2g}"
    two_sided = f"two-sided p = {result.p_two_sided.item():.3g}"
    if result.refitted is not None:
        two_sided += f" ({result.p_decision.item():.3g} among {len(result.refitted)} refits)"
    z = f"z = {result.z.item():+.3g} sd" if result.n_draws > 1 else "z not defined by one draw"
    return f"one-sided p {one_sided}, {two_sided}, {z}"


def pop_pc_features(
    result: PopPCResult,
    *,
    feature_names: Sequence[str] | None = None,
    n_top: int = 8,
    alpha: float = 0.05,
    noun: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Effect size of every feature in increasing order, with the worst features named.

    Features whose p-value of the decision is rejected by Benjamini and Hochberg's procedure are
    coloured; dashed lines lie at the smallest rejected effect of each sign. The title says where
    there are too few draws to reject any feature alone. Infinite effect sizes, of features whose
    replicates do not vary, are triangles at the edge.

    Parameters
    ----------
    result
        Check with one value per feature, shape (G,), and at least two draws.
    feature_names
        Names of the features; numbers from 1 by default.
    n_top
        How many features are named: the largest absolute effect sizes.
    alpha
        False discovery rate, between 0 and 1.
    noun
        What one value is called, for instance ``"gene"``; default the axis of the result.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the result is not one value per feature, names do not fit, or there is one draw.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}.")
    z = _effect_sizes(result, "pop_pc_features")
    names = as_names("feature_names", feature_names, len(z))
    n_top = min(as_count("n_top", n_top), len(z))
    ax = new_axes(ax, 7.2, 4.8)
    order = np.argsort(z, kind="stable")
    rank = np.empty(len(z))
    rank[order] = np.arange(1, len(z) + 1)
    edge = 1.15 * max(1.0, np.abs(z[np.isfinite(z)]).max(initial=0.0))
    drawn = np.clip(z, -edge, edge)
    _scale_effects(ax, drawn, wide=edge > WIDE)
    ax.set_xlim(0.5 - 0.04 * len(z), 0.5 + 1.04 * len(z))
    ax.axhline(0, color="0.5", lw=0.8)
    rejected = as_array("p_adjusted", result.p_adjusted, 1) <= alpha
    _draw_features(ax, rank, drawn, z, rejected)
    if rejected.any():
        ax.legend(edgecolor="none", framealpha=0.9, loc="lower right", fontsize=9)
    worst = np.argsort(-np.abs(z), kind="stable")[:n_top]
    for side, chosen in (("left", worst[z[worst] > 0]), ("right", worst[z[worst] <= 0])):
        if len(chosen):
            texts = [names[i] for i in chosen]
            label_points(ax, rank, drawn, chosen, texts, side)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        xlabel=f"{plural(noun or result.axis or 'feature')} in order of z",
        ylabel="effect size z [sd of the replicates]" + (WIDE_SCALE if edge > WIDE else ""),
    )
    title = f"{spaced(result.discrepancy)}: {_kind(result)}"
    set_heading(ax, title, *_rejections(result, alpha))
    tidy(ax)
    return ax


def _scale_effects(ax: Axes, drawn: Array, *, wide: bool) -> None:
    """Room for names above and below; plain numbers on a scale that is logarithmic outside ±3."""
    room = 2.5 if wide else 1.3
    low, high = room * min(drawn.min(), -1.0), room * max(drawn.max(), 1.0)
    if wide:
        ax.set_yscale("symlog", linthresh=LINEAR)
        size = [step * 10.0**power for power in range(ORDERS) for step in (1, 3)]
        ticks = [t for t in [*(-s for s in reversed(size)), 0.0, *size] if low <= t <= high]
        every = int(np.ceil(len(ticks) / MOST_TICKS))
        zero = ticks.index(0.0)
        ax.set_yticks(ticks[zero % every :: every])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(low, high)


def _draw_features(
    ax: Axes, rank: Array, drawn: Array, z: Array, rejected: NDArray[np.bool_]
) -> None:
    finite = np.isfinite(z)
    for mask, color, label in (
        (~rejected, GREY, "not rejected"),
        (rejected, VERMILION, "rejected; dashed: smallest effect"),
    ):
        here = mask & finite
        ax.plot(
            rank[here], drawn[here], ".", color=color, ms=5, label=label if mask.any() else None
        )
        for marker, edge in (("^", np.inf), ("v", -np.inf)):
            here = mask & (z == edge)
            ax.plot(rank[here], drawn[here], marker, color=color, ms=5)
    for side in (rejected & finite & (z > 0), rejected & finite & (z < 0)):
        if side.any():
            ax.axhline(drawn[side][np.abs(drawn[side]).argmin()], color=VERMILION, ls="--", lw=0.8)


def _rejections(result: PopPCResult, alpha: float) -> list[str]:
    """Lines: how many features Benjamini and Hochberg reject, and whether the draws allow any."""
    p = as_array("p_decision", result.p_decision, 1)
    rejected = as_array("p_adjusted", result.p_adjusted, 1) <= alpha
    text = f"{rejected.sum()} of {len(p)} rejected at a false discovery rate of {alpha:g}"
    if rejected.any():
        return [f"{text} (two-sided p ≤ {p[rejected].max():.2g})"]
    floor = resolution(result)
    needed = int(np.ceil(floor * len(p) / alpha - 1e-9))
    if needed <= 1:
        return [text]
    source = "draw" if result.refitted is None else "refit"
    count = result.n_draws if result.refitted is None else len(result.refitted)
    return [text, f"{counted(count, source)} cannot reject fewer than {needed}"]


def _effect_sizes(result: PopPCResult, function: str) -> Array:
    if result.uniform.ndim != 1:
        raise ValueError(
            f"{function} shows one value per feature, but {result.discrepancy} is a single "
            "number; use pop_pc_distribution."
        )
    if result.n_draws == 1:
        raise ValueError("effect sizes need at least 2 draws, the result has 1.")
    z = as_array("z", result.z, 1)
    if np.isnan(z).any():
        raise ValueError(f"z of {result.discrepancy} is NaN for {np.isnan(z).sum()} feature(s).")
    return z


def pop_pc_intervals(
    result: PopPCResult,
    *,
    feature_names: Sequence[str] | None = None,
    n_top: int = 20,
    standardised: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Replicated 90 % interval and held-out value of the worst features, largest |z| on top.

    Parameters
    ----------
    result
        Check with one value per feature, shape (G,), and at least two draws.
    feature_names
        Names of the features; numbers from 1 by default.
    n_top
        How many features are shown.
    standardised
        Subtract the mean of the replicates and divide by their standard deviation, so that
        features of different sizes can be read on one axis and the held-out value lies at z.
    ax
        Where to draw; a new figure by default. The scale is logarithmic where all values are
        positive and the largest is more than 50 times the smallest.

    Raises
    ------
    ValueError
        If the result is not one value per feature, names do not fit, there is one draw, or a
        value is infinite.
    """
    z = _effect_sizes(result, "pop_pc_intervals")
    names = as_names("feature_names", feature_names, len(z))
    worst = np.argsort(-np.abs(z), kind="stable")[: as_count("n_top", n_top)]
    replicated = as_array("replicated", result.replicated, 2, finite=True)[:, worst]
    heldout = as_array("heldout", result.heldout, 2, finite=True)[:, worst].mean(axis=0)
    if standardised:
        heldout = as_array("z", z[worst], 1, finite=True)
        replicated = _standardised(replicated)
    low, high = np.percentile(replicated, INTERVAL, axis=0)
    rows = np.arange(len(worst)) + 0.5
    ax = new_axes(ax, 7.6, 1.5 + 1.6 * LINE_INCHES * len(worst))
    ax.hlines(rows, low, high, color=BLUE, lw=3, alpha=0.75, label="replicated, 5 to 95 %")
    ax.plot(np.median(replicated, axis=0), rows, "|", color="black", ms=7, label="median")
    ax.plot(heldout, rows, "D", color=VERMILION, ms=4, label=_data(result))
    values = np.concatenate([low, heldout, high])
    if values.min() > 0 and values.max() > 50 * values.min():
        ax.set_xscale("log")
    name_rows(ax, [names[i] for i in worst], np.arange(len(worst)))
    ax.set_ylim(len(worst), 0)
    unit = " [sd of the replicates from their mean]" if standardised else ""
    ax.set_xlabel(f"{spaced(result.discrepancy)}{unit}")
    set_heading(ax, f"{_kind(result)}: the {len(worst)} largest |z|")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(ax)
    return ax


def _standardised(replicated: Array) -> Array:
    """Columns with mean 0 and standard deviation 1; those that do not vary are 0."""
    centred = replicated - replicated.mean(axis=0)
    varies = (replicated != replicated[0]).any(axis=0)
    return np.where(varies, centred / np.where(varies, replicated.std(axis=0, ddof=1), 1.0), 0.0)
