"""Calibration of the three kinds on linear regression with its exact posterior.

Correct model, flat prior, noise with known sd 1; mean negative log likelihood. Expected: plug-in
and predictive kinds reject 5 %, the realised kind rejects more the larger its regime number r,
and the in-sample check with a plug-in discrepancy rejects far too often.

    python benchmarks/calibration/regression.py --sets 1000 --out regression.csv
"""

from __future__ import annotations

from simulations import regression
from study import (
    PValues,
    arguments,
    check_sets,
    negative_log_likelihood,
    ppc_suite,
    rates,
    regime,
    report,
)

from probinterp.criticism import pop_pc_suite

SIZES = (
    (100, 100, 1),
    (100, 100, 10),
    (100, 100, 40),
    (100, 20, 40),
    (400, 100, 40),
    (1000, 1000, 10),
)
KINDS = ("plugin", "predictive", "realised", "in-sample plugin")


def p_values(
    size: tuple[int, int, int], kind: str, n_sets: int, n_draws: int, seed: int
) -> PValues:
    """p-values of the held-out check of one kind, or of the classical check."""
    in_sample = kind.startswith("in-sample")
    found = check_sets(
        regression(*size, in_sample=in_sample),
        {"NLL": negative_log_likelihood},
        n_sets=n_sets,
        n_draws=n_draws,
        kind=kind.removeprefix("in-sample "),
        seed=seed,
        check=ppc_suite if in_sample else pop_pc_suite,
    )
    return found["NLL"]


def main() -> None:
    options = arguments(__doc__, n_sets=1000, n_draws=399)
    rows = []
    for size in SIZES:
        settings = dict(zip(("n_obs", "n_new", "dim"), size, strict=True))
        settings["r"] = regime(regression(*size), 400, options.seed)
        for kind in KINDS:
            p = p_values(size, kind, options.sets, options.draws, options.seed)
            rows.append(settings | {"kind": kind} | rates(p))
    report(rows, options.out)


if __name__ == "__main__":
    main()
