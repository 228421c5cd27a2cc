"""Figures of the calibration studies."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from probinterp.reporting.uniform_band import GRID, uniform_band

COLOURS = {
    "PPC": "#d55e00",
    "divided split": "#009e73",
    "Pop-PC": "#0072b2",
    "calibrated PPC": "#cc79a7",
}


def plot_four_checks(cells: list, models: dict, path: Path) -> None:
    """Above: ECDF of the p-values under the truth minus uniform; below: power."""
    figure, axes = plt.subplots(2, len(models), figsize=(3.3 * len(models), 6), sharey="row")
    n_sets = len(cells[0].p.rank)
    low, high = uniform_band(n_sets)
    for (name, model), (above, below) in zip(models.items(), axes.T, strict=True):
        above.fill_between(GRID, low - GRID, high - GRID, color="0.88", lw=0)
        above.axhline(0, color="0.6", lw=0.8)
        below.axhline(0.05, color="0.6", lw=0.8, ls=":")
        for check, colour in COLOURS.items():
            mine = [cell for cell in cells if (cell.model, cell.check) == (name, check)]
            under_the_truth = np.sort(mine[0].p.rank.numpy())
            share = np.searchsorted(under_the_truth, GRID, side="right") / n_sets
            above.plot(GRID, share - GRID, color=colour, lw=1.4, label=check)
            rejected = [(cell.p.two_sided <= 0.05).double().mean().item() for cell in mine]
            below.plot(model.strengths, rejected, "o-", color=colour, lw=1.4, ms=3.5)
        above.set(title=name, xlabel="p under the truth", xlim=(0, 1))
        below.set(xlabel=model.misfit, ylim=(-0.02, 1.02))
    axes[0, 0].set_ylabel("ECDF(p) - p")
    axes[1, 0].set_ylabel("share rejected at 5 %")
    axes[0, 0].legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
