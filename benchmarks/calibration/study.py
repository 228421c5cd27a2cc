"""What the calibration studies share: many data sets in one check, rates, a table, a CSV file.

The exact models compute independent data sets side by side, shape (D, N, G). A check sees them as
one data set of D * N rows and a discrepancy with one value per data set, so that a single call of
``pop_pc`` checks all of them.
"""

from __future__ import annotations

import argparse
import csv
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import kstest
from torch import Tensor

from probinterp.criticism import (
    FunctionDraw,
    PopPCResult,
    PredictiveDraw,
    RegimeWarning,
    pop_pc,
    pop_pc_suite,
    ppc,
)
from probinterp.criticism.discrepancies import mean_negative_log_likelihood
from probinterp.models.exact import ExactDraws

Statistic = Callable[[Tensor, PredictiveDraw], Tensor]  # of (D, N, G), one value per set, (D,)
N_SIDE_BY_SIDE = 500  # data sets at a time: more do not fit the processor's cache


class DataSets(NamedTuple):
    """Posterior draws of D data sets, and what they are compared with, (D, N, G)."""

    draws: ExactDraws
    x_new: Tensor


Simulation = Callable[[int, int, int], DataSets]  # (n_sets, n_draws, seed)


class SideBySide:
    """Draws of D data sets as the draws of one data set of D * N rows."""

    def __init__(self, draws: ExactDraws, n_sets: int) -> None:
        self.draws, self.n_sets = draws, n_sets
        self.local, self.n_obs = draws.local, draws.n_obs
        self.reference = self._flat(draws.reference)

    @property
    def reference_draws(self) -> tuple[FunctionDraw, ...]:
        """Reference draws of all data sets."""
        return tuple(map(self._flat, self.draws.reference_draws))

    def __iter__(self) -> Iterator[FunctionDraw]:
        return map(self._flat, self.draws)

    def _flat(self, draw: PredictiveDraw) -> FunctionDraw:
        return FunctionDraw(
            lambda: draw.replicate().flatten(0, 1),
            lambda x: draw.likelihood(x.unflatten(0, (self.n_sets, -1))),
        )


class PValues(NamedTuple):
    """One-sided rank p-values and two-sided p-values of many data sets."""

    rank: Tensor
    two_sided: Tensor

    @classmethod
    def of(cls, result: PopPCResult) -> PValues:
        """p-values of a check with one value per data set."""
        return cls(result.p_rank, result.p_two_sided)


def per_set(statistic: Statistic, n_sets: int) -> Callable[[Tensor, PredictiveDraw], Tensor]:
    """Discrepancy of D * N rows with one value per data set."""
    return lambda x, draw: statistic(x.unflatten(0, (n_sets, -1)), draw)


def check_sets(
    simulate: Simulation,
    statistics: Mapping[str, Statistic],
    *,
    n_sets: int,
    n_draws: int,
    kind: str = "plugin",
    seed: int = 0,
    check: Callable[..., dict[str, PopPCResult]] = pop_pc_suite,
) -> dict[str, PValues]:
    """Simulate data sets, check each of them, and return their p-values by statistic."""
    sizes = [min(N_SIDE_BY_SIDE, n_sets - start) for start in range(0, n_sets, N_SIDE_BY_SIDE)]
    seeds = np.random.SeedSequence(seed).generate_state(2 * len(sizes)).reshape(-1, 2).tolist()
    parts = []
    for size, (data_seed, check_seed) in zip(sizes, seeds, strict=True):
        draws, x_new = simulate(size, n_draws, data_seed)
        suite = {name: per_set(statistic, size) for name, statistic in statistics.items()}
        with warnings.catch_warnings():
            # the regime number of D data sets together is sqrt(D) times that of each
            warnings.simplefilter("ignore", RegimeWarning)
            results = check(
                SideBySide(draws, size), x_new.flatten(0, 1), suite, kind=kind, seed=check_seed
            )
        parts.append({name: PValues.of(result) for name, result in results.items()})
    return {
        name: PValues(*map(torch.cat, zip(*(part[name] for part in parts), strict=True)))
        for name in statistics
    }


def check_side_by_side(
    draws: ExactDraws,
    x: Tensor,
    statistic: Statistic,
    *,
    seed: int,
    check: Callable[..., dict[str, PopPCResult]] = pop_pc_suite,
) -> PopPCResult:
    """Check D data sets (D, N, G), however many, by one statistic; one p-value for each."""
    suite = {"statistic": per_set(statistic, len(x))}
    found = check(SideBySide(draws, len(x)), x.flatten(0, 1), suite, kind="plugin", seed=seed)
    return found["statistic"]


def ppc_suite(
    draws: SideBySide,
    x: Tensor,
    suite: Mapping[str, Callable[[Tensor, PredictiveDraw], Tensor]],
    *,
    kind: str,
    seed: int,
) -> dict[str, PopPCResult]:
    """Classical checks of many data sets, for ``check_sets``."""
    return {name: ppc(draws, x, one, kind=kind, seed=seed) for name, one in suite.items()}


def realised_alone(simulate: Simulation, n_draws: int, seed: int) -> PopPCResult:
    """Realised check of a single data set, with its own regime number."""
    draws, x_new = simulate(1, n_draws, seed)
    alone = SideBySide(draws, 1)
    return pop_pc(alone, x_new[0], mean_negative_log_likelihood, kind="realised", seed=seed)


def regime(simulate: Simulation, n_draws: int, seed: int) -> float | None:
    """Regime number of a single data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegimeWarning)
        return realised_alone(simulate, n_draws, seed).regime


def negative_log_likelihood(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Mean negative log likelihood of the units of each data set."""
    return -draw.likelihood(x.flatten(0, 1)).log_prob(x).mean(-1)


def mean(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Mean of each data set."""
    return x.mean((1, 2))


def variance(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Variance of the first feature of each data set."""
    return x[..., 0].var(1)


def largest_group(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Largest mean of a row of each data set."""
    return x.mean(2).amax(1)


def zeros(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Share of zeros of each data set."""
    return (x == 0).to(x.dtype).mean((1, 2))


def rates(p: PValues) -> dict[str, float]:
    """Summarise the p-values of many data sets.

    Returns the two-sided rejection rate at 5 % with its Monte-Carlo standard error, the
    Kolmogorov distance to the uniform distribution with its p-value, and the mean p-value.
    """
    n_sets = len(p.rank)
    rejected = (p.two_sided <= 0.05).double().mean().item()
    distance, ks_p = kstest(p.rank.numpy(), "uniform")
    return {
        "sets": n_sets,
        "rej5": rejected,
        "se": math.sqrt(max(rejected * (1 - rejected), 1e-12) / n_sets),
        "ks": float(distance),
        "ks_p": float(ks_p),
        "mean_p": p.rank.mean().item(),
    }


def arguments(description: str, n_sets: int, n_draws: int) -> argparse.Namespace:
    """Read --sets, --draws, --seed and --out."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sets", type=int, default=n_sets, help="data sets per row")
    parser.add_argument("--draws", type=int, default=n_draws, help="posterior draws per check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table to this CSV file as well")
    return parser.parse_args()


def report(rows: list[dict], out: Path | None) -> None:
    """Print the rows as a table and write them to ``out`` if given."""
    rounded = [
        {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()} for r in rows
    ]
    table = [list(rows[0]), *([str(v) for v in r.values()] for r in rounded)]
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rounded)
        print(f"wrote {out}")
