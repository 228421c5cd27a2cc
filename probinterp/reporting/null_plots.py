"""Picture of a null check between models: which model can imitate which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array
from probinterp.reporting.axes import (
    BLUE,
    CHARACTER_INCHES,
    SMALL_FONT,
    VERMILION,
    color_bar,
    name_columns,
    name_rows,
    new_axes,
    set_heading,
    shorten,
)

if TYPE_CHECKING:
    from probinterp.criticism.null_result import NullCheckResult

Array = NDArray[np.float64]
Measure = Literal["kl", "ks"]
LABELS = {"kl": "symmetrised KL divergence [bits]", "ks": "Kolmogorov-Smirnov distance"}
WIDEST = 12  # models up to which cells are large enough for their numbers


def null_check_matrix(
    result: NullCheckResult,
    *,
    measure: Measure = "kl",
    alpha: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """How far each model's replicates lie from those of the model whose check is used.

    Rows are the models that replicate, columns those whose discrepancy judges: a pale cell says
    that the row can imitate the column. Below the distance stands the share of the row's
    replicates that the column's two-sided check accepts. The diagonal holds the two-sided
    p-value of each model's own held-out check, framed where it is rejected.

    Parameters
    ----------
    result
        Null check of M models.
    measure
        ``"kl"``: symmetrised Kullback-Leibler divergence of histograms, in bits; ``"ks"``:
        Kolmogorov-Smirnov distance, with its Monte-Carlo standard error.
    alpha
        Level of the checks.
    ax
        Where to draw; a new figure by default. Numbers are written for up to 12 models.

    Raises
    ------
    ValueError
        If ``measure`` is unknown, or there are too few replicates for ``alpha``.
    """
    if measure not in LABELS:
        raise ValueError(f"measure must be one of {', '.join(LABELS)}, got {measure!r}.")
    accepted = as_array("acceptance", result.acceptance(alpha), 2).T
    values = as_array(measure, result.kl if measure == "kl" else result.ks, 2).T
    m = len(result.models)
    ax = new_axes(ax, *_inches(result.models))
    top = 1.0 if measure == "ks" else max(float(np.nanmax(values, initial=0.0)), 1.0)
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=top)
    ax.set_facecolor("white")
    if m <= WIDEST:
        _write_cells(ax, result, values, accepted, top, measure)
    _mark_own(ax, result, alpha)
    name_rows(ax, result.models, np.arange(m))
    name_columns(ax, result.models)
    ax.set(xlabel="discrepancy of", ylabel="replicates of")
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    color_bar(ax, mesh, LABELS[measure])
    set_heading(
        ax,
        f"distance, share accepted at {alpha:g} ({result.n_replicates} replicates)",
        "diagonal: own held-out check, framed if it fails",
    )
    return ax


def _inches(models: Sequence[str]) -> tuple[float, float]:
    """Width and height of a figure whose cells have room for two lines of numbers."""
    m, longest = len(models), CHARACTER_INCHES * max(len(shorten(name)) for name in models)
    cell = 0.95 if m <= WIDEST else 0.5
    upright = longest > 0.75 * cell
    return 2.6 + cell * m + longest, 1.9 + 0.7 * cell / 0.95 * m + (longest if upright else 0)


def _write_cells(
    ax: Axes,
    result: NullCheckResult,
    values: Array,
    accepted: Array,
    top: float,
    measure: Measure,
) -> None:
    errors = as_array("ks_error", result.ks_error, 2).T if measure == "ks" else None
    for row, column in np.ndindex(values.shape):
        if row == column:
            continue
        value = values[row, column]
        said = f"{value:.2f}" if errors is None else f"{value:.2f} ± {errors[row, column]:.2f}"
        text = f"{said}\n{accepted[row, column]:.0%}"
        color = "white" if value > 0.55 * top else "black"
        place: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": SMALL_FONT,
            "color": color,
        }
        ax.text(column + 0.5, row + 0.5, text, **place)


def _mark_own(ax: Axes, result: NullCheckResult, alpha: float) -> None:
    """Held-out p-values on the diagonal, with a frame around those that are rejected."""
    for i, p in enumerate(result.p_two_sided.tolist()):
        failed = p <= alpha
        style: dict[str, Any] = {"ec": VERMILION, "lw": 2} if failed else {"ec": "0.8", "lw": 0.8}
        ax.add_patch(Rectangle((i + 0.03, i + 0.03), 0.94, 0.94, fc="white", **style))
        if len(result.models) <= WIDEST:
            color = VERMILION if failed else BLUE
            place: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": SMALL_FONT,
                "color": color,
            }
            ax.text(i + 0.5, i + 0.5, f"p = {p:.2g}", **place)
