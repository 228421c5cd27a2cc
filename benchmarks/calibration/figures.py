"""Figures of the calibration studies."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binom

COLOURS = {
    "PPC": "#d55e00",
    "divided split": "#009e73",
    "Pop-PC": "#0072b2",
    "calibrated PPC": "#cc79a7",
}


def simultaneous_band(n_values: int, at: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Band that a share ``level`` of the ECDFs of uniform samples never leaves, (2, T).

    Pointwise binomial intervals whose common level is found by simulation (Säilynoja, Bürkner
    and Vehtari, Graphical test for discrete uniformity, 2022).
    """
    samples = np.sort(np.random.default_rng(0).random((2000, n_values)))
    counts = np.array([np.searchsorted(sample, at, side="right") for sample in samples])
    tails = np.minimum(binom.cdf(counts, n_values, at), binom.sf(counts - 1, n_values, at)).min(1)
    tail = np.quantile(tails, 1 - level)
    return np.array([binom.ppf(q, n_values, at) for q in (tail, 1 - tail)]) / n_values


def plot_four_checks(cells: list, models: dict, path: Path) -> None:
    """Above: ECDF of the p-values under the truth minus uniform; below: power."""
    at = np.linspace(0.005, 0.995, 199)
    figure, axes = plt.subplots(2, len(models), figsize=(3.3 * len(models), 6), sharey="row")
    n_sets = len(cells[0].p.rank)
    low, high = simultaneous_band(n_sets, at)
    for (name, model), (above, below) in zip(models.items(), axes.T, strict=True):
        above.fill_between(at, low - at, high - at, color="0.88", lw=0)
        above.axhline(0, color="0.6", lw=0.8)
        below.axhline(0.05, color="0.6", lw=0.8, ls=":")
        for check, colour in COLOURS.items():
            mine = [cell for cell in cells if (cell.model, cell.check) == (name, check)]
            under_the_truth = np.sort(mine[0].p.rank.numpy())
            share = np.searchsorted(under_the_truth, at, side="right") / n_sets
            above.plot(at, share - at, color=colour, lw=1.4, label=check)
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
