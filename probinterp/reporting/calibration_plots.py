"""Pictures of calibration: are p-values uniform, and what do repeated fits say of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array
from probinterp.reporting.axes import (
    BAND,
    BLUE,
    GREY,
    SERIES,
    VERMILION,
    new_axes,
    set_heading,
    shorten,
    spaced,
    tidy,
)
from probinterp.reporting.uniform_band import GRID, uniform_band

if TYPE_CHECKING:
    from probinterp.criticism.calibrated_ppc import CalibratedPPCResult
    from probinterp.criticism.result import PopPCResult

Array = NDArray[np.float64]
ROUNDING = 1e-9  # of shares that are counts divided by n


def p_value_ecdf(
    p: Any | Mapping[str, Any], *, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    r"""Empirical distribution of p-values minus the uniform one, with a simultaneous band.

    The curve is :math:`\hat F(u) - u`: above 0 at small u where there are too many small
    p-values. Independent uniform p-values stay inside the band everywhere with probability
    ``level``, so that leaving it anywhere is a test of uniformity.

    Parameters
    ----------
    p
        P-values in [0, 1], independent of each other, shape (n,); or several sets of them by
        name, all of the same size.
    level
        Probability of the band, for each set.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    TypeError
        If the p-values are not numbers.
    ValueError
        If a p-value lies outside [0, 1], sets differ in size, there is none, or ``level`` is not
        between 0 and 1.

    References
    ----------
    Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and
    multiple sample comparison (Säilynoja, Bürkner and Vehtari, 2022).
    """
    named = isinstance(p, Mapping)
    sets = (
        {str(name): _p_values(f"p[{name!r}]", values) for name, values in p.items()}
        if named
        else {"p-values": _p_values("p", p)}
    )
    sizes = {name: len(values) for name, values in sets.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"p must hold sets of one size, at least one set; got sizes {sizes}.")
    n = next(iter(sizes.values()))
    low, high = uniform_band(n, level)
    ax = new_axes(ax, 6.0, 4.0)
    curves = {name: ecdf(values) for name, values in sets.items()}
    draw_ecdfs(ax, curves, low, high, level)
    ax.set(xlabel="p-value", ylabel="ECDF − uniform")
    heading = f"{n:,} p-values" + (" a curve" if len(sets) > 1 else "")
    said = "" if named else f": {departure(curves['p-values'], low, high, level)}"
    set_heading(ax, heading + said)
    return ax


def ecdf(values: Array) -> Array:
    """Share of values at or below each point of the grid, (199,)."""
    return np.searchsorted(np.sort(values), GRID, side="right") / len(values)


def draw_ecdfs(
    ax: Axes, curves: Mapping[str, Array], low: Array, high: Array, level: float
) -> None:
    """Draw distribution functions minus the uniform one over a band; name them if several."""
    ax.fill_between(GRID, low - GRID, high - GRID, color=BAND, lw=0, label=f"{level:.0%} band")
    ax.axhline(0, color="0.5", lw=0.8)
    for index, (name, curve) in enumerate(curves.items()):
        style = ("-", "--", ":")[index // len(SERIES) % 3]
        out = "" if leaves(curve, low, high) is None else " (leaves the band)"
        label = f"{shorten(name)}{out}" if len(curves) > 1 else None
        color = SERIES[index % len(SERIES)]
        ax.plot(GRID, curve - GRID, color=color, ls=style, lw=1.5, label=label)
    ax.set_xlim(0, 1)
    ax.legend(frameon=False, fontsize=9)
    tidy(ax)


def leaves(curve: Array, low: Array, high: Array) -> float | None:
    """Point at which a distribution function is farthest outside a band, None if it is inside."""
    outside = np.maximum(low - curve, curve - high)
    worst = int(outside.argmax())
    return float(GRID[worst]) if outside[worst] > ROUNDING else None


def departure(curve: Array, low: Array, high: Array, level: float) -> str:
    """Where a distribution function leaves a band, in words."""
    at = leaves(curve, low, high)
    if at is None:
        return f"inside the {level:.0%} band of uniform values"
    gap = (curve - GRID)[np.searchsorted(GRID, at)]
    side = "many" if gap > 0 else "few"
    return f"outside the {level:.0%} band of uniform values, too {side} below {at:.3g} ({gap:+.2g})"


def _p_values(name: str, values: Any) -> Array:
    array = as_array(name, values, 1, finite=True)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {array.min():.3g} to {array.max():.3g}."
        )
    return array


def refit_calibration(result: PopPCResult, ax: Axes | None = None) -> Axes:
    r"""Excess discrepancy of the data among those of data that the fit simulates and fits anew.

    The excess is :math:`t = \bar d^{new} - \bar d^{rep}`. An outline shows what the excess is
    compared with where nothing is fitted anew, the replicates around their mean: where it is
    narrower than the refits, or lies elsewhere, its p-value is too small.

    Parameters
    ----------
    result
        Check with refits and one value per draw.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the result has no refits, has several values, or a value is infinite.
    """
    if result.refitted is None:
        raise ValueError(
            f"{result.discrepancy} has no refits; run pop_pc with calibrate_refits, or use "
            "pop_pc_distribution."
        )
    if result.uniform.ndim != 0:
        raise ValueError(
            f"refit_calibration shows one value, but {result.discrepancy} has shape "
            f"{tuple(result.uniform.shape)}; use pop_pc_features."
        )
    refitted = as_array("refitted", result.refitted, 1, finite=True)
    replicated = as_array("replicated", result.replicated, 1, finite=True)
    centred, excess = replicated - replicated.mean(), result.excess.item()
    ax = new_axes(ax, 6.4, 4.2)
    ends = np.concatenate([refitted, centred])
    n_bins = int(np.clip(2 * np.sqrt(len(refitted)), 10, 40))
    bins = np.histogram_bin_edges(ends, n_bins).tolist()
    weights = [np.full(len(values), 100 / len(values)) for values in (refitted, centred)]
    text = f"{len(refitted)} refits"
    ax.hist(refitted, bins, weights=weights[0], color=BLUE, alpha=0.75, label=text)
    text = f"{len(centred)} replicates, no refit"
    ax.hist(centred, bins, weights=weights[1], color=GREY, histtype="step", lw=1.5, label=text)
    ax.plot(refitted, np.zeros(len(refitted)), "|", color="black", ms=8, mew=0.8)
    ax.axvline(excess, color=VERMILION, lw=2, label=f"the data: {excess:.4g}")
    ax.set(xlabel=f"excess of {spaced(result.discrepancy)}", ylabel="share in a bin [%]")
    by = {"refit rank": "rank", "refit t": "t distribution"}[result.decided_by]
    set_heading(
        ax,
        f"two-sided p = {result.p_decision.item():.3g} among {len(refitted)} refits ({by})",
        f"without refits two-sided p = {result.p_two_sided.item():.3g}",
    )
    ax.legend(frameon=False, fontsize=9)
    tidy(ax)
    return ax


def calibrated_ppc_distribution(result: CalibratedPPCResult, ax: Axes | None = None) -> Axes:
    """Posterior predictive p-values of simulated data sets, with that of the observed data.

    A dashed line is the height of a uniform distribution: how far the bars are from it is how far
    the uncalibrated p-value is from a p-value.

    Parameters
    ----------
    result
        Calibrated check with one value.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If the result has several values.
    """
    p = as_array("p_refits", result.p_refits, 1, finite=True)
    observed = result.observed.p_randomised.item()
    ax = new_axes(ax, 6.4, 4.2)
    bins = int(np.clip(len(p) // 5, 5, 20))
    text = f"{len(p)} simulated data sets"
    ax.hist(p, bins, range=(0, 1), color=BLUE, alpha=0.75, label=text)
    ax.axhline(len(p) / bins, color="0.3", ls="--", lw=1, label="if it were uniform")
    ax.axvline(observed, color=VERMILION, lw=2, label=f"the data: {observed:.3g}")
    ax.set(
        xlabel=f"posterior predictive p of {spaced(result.observed.discrepancy)}",
        ylabel="data sets",
        xlim=(0, 1),
    )
    set_heading(
        ax,
        f"calibrated p = {result.p_value.item():.3g} ± {result.mc_error.item():.2g}, "
        f"two-sided p = {result.p_two_sided.item():.3g}",
    )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=9)
    tidy(ax)
    return ax
