"""Pictures of the predictive checks of proxies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from probinterp.reporting.arrays import as_array, as_names
from probinterp.reporting.axes import (
    DIVERGING,
    SMALL_FONT,
    color_bar,
    name_columns,
    new_axes,
    set_heading,
)

FARTHEST = 5.0  # standard deviations at which colours end


def plot_proxy_checks(
    z: Any,
    flagged: Any,
    *,
    discrepancies: Sequence[str],
    cells: Sequence[str],
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Where new data lie among the replicates of a proxy, by discrepancy, layer and token type.

    Parameters
    ----------
    z
        Discrepancy of the new data minus the replicates' mean, in the replicates' standard
        deviations, shape (M, C); NaN where a discrepancy has no such cell. Red: larger than
        replicates, blue: smaller.
    flagged
        Which are rejected, boolean (M, C): marked by a dot.
    discrepancies
        Names of the rows, length M.
    cells
        Names of the columns, length C.
    title
        Heading.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    shown = as_array("z", z, 2)
    rows = as_names("discrepancies", discrepancies, shown.shape[0])
    columns = as_names("cells", cells, shown.shape[1])
    marks = np.asarray(flagged, dtype=bool)
    if marks.shape != shown.shape:
        raise ValueError(f"flagged must have shape {shown.shape} like z, got {marks.shape}.")
    ax = new_axes(ax, 3.0 + 0.3 * len(columns), 1.6 + 0.22 * len(rows))
    ax.set_facecolor("0.85")
    masked = np.ma.masked_invalid(np.clip(shown, -2 * FARTHEST, 2 * FARTHEST))
    mesh = ax.pcolormesh(masked, cmap=DIVERGING, vmin=-FARTHEST, vmax=FARTHEST)
    row, column = np.nonzero(marks)
    dark = np.abs(np.nan_to_num(shown[row, column])) > 0.6 * FARTHEST
    ax.scatter(column + 0.5, row + 0.5, s=9, c=np.where(dark, "white", "black"))
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=SMALL_FONT)
    ax.set_ylim(len(rows), 0)
    name_columns(ax, columns)
    color_bar(ax, mesh, "standard deviations")
    if title:
        set_heading(ax, title)
    return ax
