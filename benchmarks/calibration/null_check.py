"""Posterior predictive null check of Gaussian mixtures with one to four components.

Three components made the data. Every data set is three sets of 500 points: the models are fitted
to the first and replicate, their discrepancies come from fits to the second, the third is held
out. Expected: with fewer than three components no overlap between neighbours, so that a richer
model is needed; with three and four no difference beyond the noise of 200 replicates. Published,
from one data set and bins of which the last but one is lost: 13.54, 14.08, .504 bits for
expectation-maximisation, 13.55, 13.67, .593 for Gibbs sampling (Moran, Cunningham and Blei, 2022).
Two components can merge the groups in two ways: where both fits differ, M1/M2 falls to 1 to 8 bits.

    python benchmarks/calibration/null_check.py --out docs/studies/null_check.csv
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from study import arguments, report
from torch import Tensor

from probinterp.criticism import NullCandidate, NullCheckResult, posterior_predictive_null
from probinterp.criticism.discrepancies.mixtures import mean_negative_complete_log_likelihood
from probinterp.criticism.divergence import EMPTY_BIN, symmetrised_kl
from probinterp.models.mixtures import (
    GaussianMixture,
    GaussianMixtureParameters,
    MixtureDraw,
    MixtureDraws,
)

N_POINTS, COMPONENTS = 500, (1, 2, 3, 4)
PUBLISHED = {"EM": (13.54, 14.08, 0.504), "Gibbs": (13.55, 13.67, 0.593)}
PAIRS = ("M1/M2", "M2/M3", "M3/M4")
TRUTH = GaussianMixtureParameters(
    weights=torch.full((3,), 1 / 3, dtype=torch.float64),
    means=torch.tensor([[-5.0, 5.0], [0.0, 0.0], [10.0, 5.0]], dtype=torch.float64),
    variances=torch.tensor([[1.0, 1.0], [2.0, 1.0], [2.0, 4.0]], dtype=torch.float64),
)


def historical_kl(first: Tensor, second: Tensor, n_bins: int = 50) -> float:
    """Divergence of the published numbers: the last but one of the intervals is lost.

    The first bin counts values equal to the minimum, bin i the interval before edge i, and the
    last what lies above its edge.
    """
    values = (first.numpy(), second.numpy())
    edges = np.linspace(min(v.min() for v in values), max(v.max() for v in values), n_bins + 1)

    def shares(v: np.ndarray) -> np.ndarray:
        below = (v[:, None] <= edges[: n_bins - 1]).sum(0)  # up to edge 48
        counts = np.concatenate([np.diff(below, prepend=0), [(v > edges[n_bins - 1]).sum()]])
        return counts / len(v)

    def divergence(p: np.ndarray, q: np.ndarray) -> float:
        hit = p > 0
        return float((p[hit] * np.log2(p[hit] / np.where(q[hit] > 0, q[hit], EMPTY_BIN))).sum())

    p, q = shares(values[0]), shares(values[1])
    return (divergence(p, q) + divergence(q, p)) / 2


def candidate(
    fit: str, n_components: int, train: Tensor, test: Tensor, n_draws: int, seed: int
) -> NullCandidate:
    """Replicates of a fit to ``train``, discrepancy from an independent fit to ``test``."""
    mixture = GaussianMixture(n_components)
    modes = mixture.em(train, seed=seed), mixture.em(test, seed=seed + 1)
    if fit == "EM":
        draws = MixtureDraws([modes[0]], N_POINTS, n_draws=n_draws)
        reference = [modes[1]]
    else:
        chain = mixture.gibbs(train, start=modes[0], n_draws=n_draws, seed=seed)
        draws = MixtureDraws(chain, N_POINTS)
        reference = mixture.gibbs(test, start=modes[1], n_draws=10, thin=20, seed=seed + 1)
    at = [MixtureDraw(parameters, N_POINTS) for parameters in reference]
    return NullCandidate(draws, mean_negative_complete_log_likelihood, at)


def check(fit: str, n_draws: int, seed: int) -> NullCheckResult:
    """Null check of the four mixtures on one data set."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        train, test, val = (MixtureDraw(TRUTH, N_POINTS).replicate() for _ in range(3))
    fits = {f"K={k}": candidate(fit, k, train, test, n_draws, 2 * seed) for k in COMPONENTS}
    return posterior_predictive_null(fits, val, seed=seed)


def neighbours(matrix: Tensor) -> list[float]:
    """Entries of the discrepancy of each model on the replicates of the next simpler one."""
    return torch.diagonal(matrix, offset=-1).tolist()


def values(results: list[NullCheckResult]) -> dict[str, np.ndarray]:
    """Comparisons of neighbours on each data set, shape (n_sets, 3) each."""
    comparisons = {
        "kl": [r.kl for r in results],
        "historical": [r.divergence(historical_kl) for r in results],
        "ks": [r.ks for r in results],
        "ks_error": [r.ks_error for r in results],
        "accepted": [r.acceptance() for r in results],
    }
    return {name: np.array([neighbours(m) for m in ms]) for name, ms in comparisons.items()}


def noise_floor(n_draws: int, n_pairs: int = 500, seed: int = 0) -> np.ndarray:
    """Quantiles .05, .5, .95 of the divergence of two samples of the same normal law."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(n_pairs, 2, n_draws, generator=generator, dtype=torch.float64)
    return np.quantile([symmetrised_kl(a, b) for a, b in samples], [0.05, 0.5, 0.95])


def rows_of(fit: str, found: dict[str, np.ndarray]) -> list[dict]:
    """Medians and quartiles over the data sets, one row per pair of neighbours."""
    rows = []
    for column, pair in enumerate(PAIRS):
        row = {"fit": fit, "pair": pair, "sets": len(found["kl"])}
        row["published"] = PUBLISHED[fit][column]
        for name, values_of in found.items():
            low, middle, high = np.quantile(values_of[:, column], [0.25, 0.5, 0.75])
            row[name] = float(middle)
            if name in ("kl", "historical", "ks"):
                row[f"{name} quartiles"] = f"{low:.3g}-{high:.3g}"
        rows.append(row)
    return rows


def figure(
    example: NullCheckResult, found: dict[str, dict[str, np.ndarray]], path: Path, n_draws: int
) -> None:
    """Top: discrepancies of neighbours on one data set. Bottom: divergences on all of them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    page, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for column, axis in enumerate(axes[0]):
        _draw_neighbours(axis, example, column + 1)
    axes[0, 0].set_ylabel("replicates")
    floor = noise_floor(n_draws)
    for column, axis in enumerate(axes[1]):
        _draw_divergences(axis, found, column)
        if column == 2:
            axis.axhspan(floor[0], floor[2], color="0.9", zorder=0)
            axis.set_title(f"{PAIRS[column]} (grey: same law, 90 %)", fontsize=10)
    axes[1, 0].set_ylabel("symmetrised KL, bits")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, dpi=150)
    print(f"wrote {path}")


def _draw_neighbours(axis, result: NullCheckResult, judge: int) -> None:
    own, other = result.discrepancy[judge, judge].numpy(), result.discrepancy[judge, judge - 1]
    bins = np.histogram_bin_edges(np.concatenate([own, other.numpy()]), 40)
    axis.hist(other.numpy(), bins, alpha=0.6, color="tab:red", label=result.models[judge - 1])
    axis.hist(own, bins, alpha=0.6, color="tab:blue", label=result.models[judge])
    axis.axvline(result.heldout[judge].item(), color="black", lw=1, label="held-out")
    axis.set_title(f"discrepancy of {result.models[judge]}", fontsize=10)
    axis.set_xlabel("negative complete-data log likelihood")
    axis.legend(title="replicates of", fontsize=8, title_fontsize=8)


def _draw_divergences(axis, found: dict[str, dict[str, np.ndarray]], column: int) -> None:
    labels = []
    for fit, comparisons in found.items():
        for name in ("kl", "historical"):
            y, at = comparisons[name][:, column], len(labels)
            spread = np.linspace(-0.15, 0.15, len(y))
            axis.plot(at + spread, y, ".", color="tab:blue" if name == "kl" else "tab:orange")
            axis.plot([at - 0.3, at + 0.3], [np.median(y)] * 2, color="black", lw=1.5)
            axis.plot(at, PUBLISHED[fit][column], "x", color="tab:red", ms=9, mew=2, zorder=3)
            labels.append(f"{fit}\n{'equal bins' if name == 'kl' else 'lossy bins'}")
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_title(f"{PAIRS[column]} (cross: published)", fontsize=10)


def main() -> None:
    options = arguments(__doc__, n_sets=20, n_draws=200)
    rows, found, examples = [], {}, {}
    for fit in PUBLISHED:
        seeds = range(options.seed, options.seed + options.sets)
        results = [check(fit, options.draws, seed) for seed in seeds]
        examples[fit], found[fit] = results[0], values(results)
        rows += rows_of(fit, found[fit])
    report(rows, options.out)
    floor = ", ".join(f"{value:.3f}" for value in noise_floor(options.draws))
    print(f"two samples of one law, quantiles .05, .5, .95: {floor} bits")
    print(examples["EM"].verdict())
    if options.out is not None:
        figure(examples["EM"], found, options.out.with_suffix(".png"), options.draws)


if __name__ == "__main__":
    main()
