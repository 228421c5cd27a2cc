"""What published accuracies say of transcoders in CLIP, as a function of what is not published.

    python benchmarks/published_claims.py --out docs/studies/published_claims.csv

Papers print accuracies of a network and of its changed version on the same images, but not on how
many images the two differ. Every row is one such claim; its p-value (exact McNemar) and its verdict
(does accuracy stay within one percentage point either way) are computed for a discordance of 2, 5,
10 and 20 %, together with the largest discordance at which the change is significant, and that at
which a loss beyond one percentage point is excluded. The margin is set after the fact.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from scipy.special import ndtri

from probinterp.criticism import comparison

DISCORDANCES = (0.02, 0.05, 0.10, 0.20)
MARGIN, LEVEL = 0.01, 0.05


class Claim(NamedTuple):
    """Images gained minus images lost, of n."""

    name: str
    net: int
    n: int


CLAIMS = (
    Claim("CLT COCO all, drop-1", -7, 5000),
    Claim("CLT COCO CLS, drop-1", -17, 5000),
    Claim("CLT COCO all, keep-4", -5, 5000),
    Claim("CLT COCO CLS, keep-4", -6, 5000),
    Claim("CLT IN-100 all, keep-4", 7, 5000),
    Claim("CLT IN-100 CLS, keep-4", 3, 5000),
    Claim("CLT CIFAR-100 all, keep-4", -169, 10_000),
    Claim("CLT CIFAR-100 CLS, keep-4", -93, 10_000),
    Claim("CLT CIFAR-100 all, drop-1", -197, 10_000),
    Claim("CLT CIFAR-100 CLS, drop-1", -174, 10_000),
    Claim("CLT CIFAR-100 all, keep-4 minus drop-1", 28, 10_000),
    Claim("CLT CIFAR-100 CLS, keep-4 minus drop-1", 81, 10_000),
    Claim("CLT IN-100 all, drop-1", -274, 5000),
    Claim("CLT IN-100 CLS, drop-1", -278, 5000),
    Claim("Replacement CLS 0-11, CIFAR-100", 10, 10_000),
    Claim("Replacement CLS 0-11, COCO", 12, 5000),
    Claim("Replacement CLS 0-11, IN-100", 19, 5000),
    Claim("Replacement patches 0-11, CIFAR-100", -1055, 10_000),
    Claim("Replacement patches 0-11, COCO", -211, 5000),
    Claim("Replacement patches 0-11, IN-100", -584, 5000),
    Claim("Replacement patches 7-11, CIFAR-100", 0, 10_000),
    Claim("Replacement patches 7-11, COCO", -1, 5000),
    Claim("Replacement patches 7-11, IN-100", -11, 5000),
    Claim("VS2 CUB B/32", 54, 5794),
    Claim("VS2 CUB B/16", 63, 5794),
    Claim("VS2 Tiny B/32", 150, 10_000),
    Claim("VS2 Tiny B/16", 184, 10_000),
    Claim("VS2 CIFAR-100 B/32", 345, 10_000),
    Claim("VS2 CIFAR-100 B/16", 412, 10_000),
    Claim("PASS over VS2, CUB B/32", 16, 5794),
    Claim("PASS over VS2, Tiny B/16", 6, 10_000),
    Claim("PASS over VS2, CIFAR-100 B/16", 15, 10_000),
    Claim("PASS over VS2, CUB B/16", 28, 5794),
    Claim("PASS over VS2, Tiny B/32", -20, 10_000),
    Claim("VS2 CUB L/14", 102, 5794),
    Claim("VS2 CIFAR-100 L/14", 164, 10_000),
    Claim("VS2 Tiny L/14", 94, 10_000),
)


def cells_at(claim: Claim, discordance: float) -> comparison.Cells | None:
    """Counts with this discordance, or None where the change is larger than that.

    A net change is odd where the number of discordant images is; that number is raised by one
    where rounding has given the other parity. Who recognises the other images does not matter.
    """
    m = round(discordance * claim.n)
    m += (m - claim.net) % 2
    if m < abs(claim.net):
        return None
    gained = (m + claim.net) // 2
    return comparison.Cells(0, m - gained, gained, claim.n - m)


def p_value(claim: Claim, discordance: float) -> float | None:
    """Exact two-sided p-value at a discordance."""
    cells = cells_at(claim, discordance)
    if cells is None:
        return None
    return comparison.mcnemar(cells.network_only, cells.proxy_only, "exact")


def significant_up_to(net: int, n: int, level: float = LEVEL) -> int:
    """Largest number of discordant images at which the change is significant, 0 for none."""
    size, found = abs(net), 0
    for m in range(size, n + 1, 2):
        if comparison.mcnemar((m + size) // 2, (m - size) // 2, "exact") >= level:
            break
        found = m
    return found


def noninferior_up_to(claim: Claim, margin: float = MARGIN, level: float = LEVEL) -> float | None:
    """Largest discordance at which the lower bound of Wald lies above minus the margin."""
    change = claim.net / claim.n
    room = (margin + change) / ndtri(1 - level)
    largest = claim.n * room**2 + change**2
    return min(largest, 1.0) if room > 0 and largest > abs(change) else None


def row_of(claim: Claim) -> dict[str, str | int | float]:
    """One line of the table."""
    row: dict[str, str | int | float] = {
        "claim": claim.name,
        "n": claim.n,
        "net": claim.net,
        "change_pp": round(100 * claim.net / claim.n, 3),
    }
    for q in DISCORDANCES:
        cells = cells_at(claim, q)
        key = f"{100 * q:.0f}"
        row[f"p_at_{key}"] = "impossible" if cells is None else f"{p_value(claim, q):.3g}"
        row[f"verdict_at_{key}"] = "impossible" if cells is None else _decision(cells)
    m = significant_up_to(claim.net, claim.n)
    row["significant_up_to_percent"] = "none" if not m else f"{100 * m / claim.n:.3g}"
    largest = noninferior_up_to(claim)
    row["noninferior_up_to_percent"] = "never" if largest is None else f"{100 * largest:.3g}"
    return row


def _decision(cells: comparison.Cells) -> str:
    found = comparison.accuracy_of_cells(cells, n_boot=100)
    return comparison.verdict(found, margin=MARGIN, goal="equivalence", declared="after").decision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/studies/published_claims.csv"))
    path = parser.parse_args().out
    rows = [row_of(claim) for claim in CLAIMS]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} claims written to {path}.")


if __name__ == "__main__":
    main()
