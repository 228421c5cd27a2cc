"""What the calibration studies share: rates of many p-values, a printed table, a CSV file.

Every study puts one data set into each *column* of the data, shape (N, D), and uses
discrepancies with one value per column, so that a single call of ``pop_pc`` checks D
independent data sets.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import torch
from scipy.stats import kstest

from probinterp.criticism import FunctionDraw, PopPCResult


def rates(result: PopPCResult, sets: slice = slice(None)) -> dict[str, float]:
    """Summarise the p-values of many data sets, all of them or a slice of the columns.

    Returns the two-sided rejection rate at 5 % with its Monte-Carlo standard error, the
    Kolmogorov distance to the uniform distribution with its p-value, and the mean p-value.
    """
    p = result.p_rank[sets].numpy()
    rejected = (result.p_two_sided[sets] <= 0.05).double().mean().item()
    distance, ks_p = kstest(p, "uniform")
    return {
        "sets": len(p),
        "rej5": rejected,
        "se": math.sqrt(max(rejected * (1 - rejected), 1e-12) / len(p)),
        "ks": float(distance),
        "ks_p": float(ks_p),
        "mean_p": float(p.mean()),
    }


def one_column(draw: FunctionDraw, column: int) -> FunctionDraw:
    """Restrict a draw to one data set, so that the whole check runs on it alone."""

    def likelihood(x: torch.Tensor) -> torch.distributions.Distribution:
        law = draw.likelihood(x)
        mean = law.mean[:, column : column + 1]
        scale = law.stddev[:, column : column + 1]
        return torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)

    return FunctionDraw(lambda: draw.replicate()[:, column : column + 1], likelihood)


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
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    table = [list(rows[0]), *cells]
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if out is not None:
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"wrote {out}")
