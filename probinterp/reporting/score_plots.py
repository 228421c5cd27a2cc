"""Pictures of held-out scores: which model predicts better, and are its intervals right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array, as_count
from probinterp.reporting.axes import (
    BAND,
    BLUE,
    GREY,
    LINE_INCHES,
    SMALL_FONT,
    VERMILION,
    name_rows,
    new_axes,
    set_heading,
    tidy,
)
from probinterp.reporting.calibration_plots import departure, draw_ecdfs, ecdf
from probinterp.reporting.uniform_band import GRID, uniform_band

if TYPE_CHECKING:
    from probinterp.criticism.score_comparison import ScoreComparison
    from probinterp.criticism.scores import Coverage

Array = NDArray[np.float64]
CLEAR = 2.0  # standard errors of a difference from which it is coloured


def score_differences(comparison: ScoreComparison, ax: Axes | None = None) -> Axes:
    """Paired difference of every model's score to the best, with bars of 1 and 2 standard errors.

    Models are in order, the best on top; one whose difference is at least 2 standard errors is
    coloured. The average score stands beside each name.

    Parameters
    ----------
    comparison
        Models compared by one score.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If a score or an error is infinite.
    """
    rows = comparison.rows
    gap = as_array("differences", [row.difference for row in rows], 1, finite=True)
    error = as_array("errors", [row.difference_error for row in rows], 1, finite=True)
    means = as_array("scores", [row.mean for row in rows], 1, finite=True)
    ax = new_axes(ax, 8.0, 1.6 + 2.6 * LINE_INCHES * len(rows))
    clear = np.abs([row.z for row in rows]) >= CLEAR
    heights = np.arange(len(rows)) + 0.5
    ax.plot(gap[:1], heights[:1], "D", color=BLUE, ms=6, label="best")
    for mask, color, text in (
        (clear, VERMILION, "clearly worse (2 s.e. or more)"),
        (~clear, GREY, "not clearly worse"),
    ):
        others = mask & (np.arange(len(rows)) > 0)
        if others.any():
            at, x, se = heights[others], gap[others], error[others]
            ax.hlines(at, x - 2 * se, x + 2 * se, color=color, lw=1.2)
            ax.hlines(at, x - se, x + se, color=color, lw=4)
            ax.plot(x, at, "o", color=color, ms=6, label=text)
    ax.axvline(0, color="0.5", lw=0.8, zorder=0)
    names = [f"{row.name} ({mean:.4g})" for row, mean in zip(rows, means, strict=True)]
    name_rows(ax, names, np.arange(len(rows)))
    ax.set_ylim(len(rows), 0)
    ax.set_xlabel(f"{comparison.score} minus that of the best, per unit")
    units = "units" if comparison.n_clusters == comparison.differences.shape[1] else "groups"
    set_heading(
        ax,
        f"held-out {comparison.score}: paired differences ± 1 and 2 s.e. over "
        f"{comparison.n_clusters:,} {units}",
    )
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(ax)
    return ax


def interval_coverage(coverage: Coverage, ax: Axes | None = None) -> Axes:
    """Observed minus nominal share of held-out entries inside central predictive intervals.

    Below 0 the intervals are too narrow. The band is 2 binomial standard errors of a correct
    model with independent entries; bars are 2 standard errors from the spread over units, which
    hold for dependent entries of a unit too. Both are pointwise. The observed share is written
    at each point; the thin line is the same difference at all levels.

    Parameters
    ----------
    coverage
        Coverage of held-out data.
    ax
        Where to draw; a new figure by default.
    """
    pit = as_array("pit", coverage.pit, 2, finite=True)
    levels = as_array("levels", coverage.levels, 1)
    observed = as_array("observed", coverage.observed, 1)
    ax = new_axes(ax, 7.6, 4.0)
    band = 2 * np.sqrt(GRID * (1 - GRID) / pit.size)
    ax.fill_between(GRID, -band, band, color=BAND, lw=0, label="± 2 s.e.,\nindependent entries")
    ax.axhline(0, color="0.5", lw=0.8)
    ax.plot(GRID, ecdf(2 * np.abs(pit - 0.5).ravel()) - GRID, color=BLUE, lw=1)
    if len(pit) > 1:
        bars = 2 * as_array("standard_error", coverage.standard_error, 1)
        style: dict[str, Any] = {"color": BLUE, "capsize": 3, "fmt": "o", "ms": 5}
        ax.errorbar(levels, observed - levels, bars, label="observed\n± 2 s.e. over units", **style)
    else:
        ax.plot(levels, observed - levels, "o", color=BLUE, ms=5, label="observed")
    _write_shares(ax, levels, observed)
    ax.set(xlabel="nominal probability of the interval", ylabel="observed − nominal", xlim=(0, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    set_heading(ax, f"coverage of {_size(coverage)}")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(ax)
    return ax


def _write_shares(ax: Axes, levels: Array, observed: Array) -> None:
    """Observed shares in a row at the top, above everything that is drawn."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.2 * (high - low))
    for level, share in zip(levels, observed, strict=True):
        place = ax.get_xaxis_transform()
        text = f"{share:.1%}"
        ax.text(
            level, 0.99, text, transform=place, size=SMALL_FONT, rotation=90, ha="center", va="top"
        )


def pit_histogram(coverage: Coverage, *, n_bins: int = 20, ax: Axes | None = None) -> Axes:
    """Histogram of the probability integral transform of held-out entries; flat if all is well.

    A valley is a predictive distribution that is too narrow, a hill one that is too wide, a slope
    a bias. The band holds all bars together with a probability of about 95 %: t intervals whose
    levels are divided by the number of bins, from the spread of each bar over units, at least
    that of independent entries. With strongly dependent entries of few units the probability is
    a few per cent lower.

    Parameters
    ----------
    coverage
        Coverage of held-out data.
    n_bins
        Number of bins.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If ``n_bins`` is not a positive whole number.
    """
    from scipy.stats import t as student  # slow to import, seldom needed

    bins = as_count("n_bins", n_bins)
    pit = as_array("pit", coverage.pit, 2, finite=True)
    ax = new_axes(ax, 6.0, 4.0)
    degrees = len(pit) - 1 if len(pit) > 1 else np.inf
    half = bins * student.isf(0.025 / bins, degrees) * _bin_errors(pit, bins)
    weights = np.full(pit.size, bins / pit.size)
    ax.hist(pit.ravel(), bins, range=(0, 1), weights=weights, color=BLUE, alpha=0.6)
    style: dict[str, Any] = {"color": "black", "alpha": 0.2, "lw": 0, "zorder": 3, "fill": True}
    edges, low = np.linspace(0, 1, bins + 1), np.maximum(1 - half, 0)
    text = "95 % band, all bins together"
    ax.stairs(1 + half, edges, baseline=low, label=text, **style)
    ax.axhline(1, color="0.2", ls="--", lw=1, zorder=3)
    ax.set(xlabel="PIT of held-out entries", ylabel="density", xlim=(0, 1))
    set_heading(ax, _size(coverage))
    ax.legend(frameon=False, fontsize=9, loc="lower center")
    tidy(ax)
    return ax


def _bin_errors(pit: Array, n_bins: int) -> Array:
    """Standard error of the share of entries in each bin, (n_bins,)."""
    independent = np.sqrt((1 / n_bins) * (1 - 1 / n_bins) / pit.size)
    if len(pit) == 1:
        return np.full(n_bins, independent)
    edges = np.linspace(0, 1, n_bins + 1)
    shares = np.array([np.histogram(row, edges)[0] for row in pit]) / pit.shape[1]
    return np.maximum(independent, shares.std(axis=0, ddof=1) / np.sqrt(len(pit)))


def pit_ecdf(coverage: Coverage, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    r"""Distribution of the PIT of held-out entries minus the uniform one, simultaneous band.

    Entries of a unit are dependent: the band is that of :func:`effective_size` independent
    values. It takes units as independent of each other.

    Parameters
    ----------
    coverage
        Coverage of held-out data.
    level
        Probability that a correct model stays inside the band everywhere.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If ``level`` is not between 0 and 1.

    References
    ----------
    Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and
    multiple sample comparison (Säilynoja, Bürkner and Vehtari, 2022).
    """
    pit = as_array("pit", coverage.pit, 2, finite=True)
    low, high = uniform_band(max(1, int(effective_size(pit))), level)
    ax = new_axes(ax, 6.0, 4.0)
    curve = ecdf(pit.ravel())
    draw_ecdfs(ax, {"PIT": curve}, low, high, level)
    ax.set(xlabel="PIT of held-out entries", ylabel="ECDF − uniform")
    set_heading(ax, _size(coverage), departure(curve, low, high, level))
    return ax


def effective_size(pit: Array) -> float:
    r"""Number of independent values that know as much of their distribution as dependent entries.

    .. math:: n_e = NG \frac{\sum_u u (1 - u) / NG}{\sum_u \mathrm{var}_i(\hat F_i(u)) / N}

    with :math:`\hat F_i` the distribution of the entries of unit i; at most NG.

    Parameters
    ----------
    pit
        Values of N units, (N, G).
    """
    n_units = len(pit)
    if n_units == 1:
        return float(pit.size)
    within = np.array([(pit <= u).mean(axis=1).var(ddof=1) for u in GRID[9::10]])
    u = GRID[9::10]
    spread = within.sum() / n_units
    return float(min(pit.size, (u * (1 - u)).sum() / spread)) if spread > 0 else float(pit.size)


def _size(coverage: Coverage) -> str:
    n, g = coverage.pit.shape
    return f"{n:,} × {g:,} held-out entries, {coverage.n_draws:,} draws"
