"""Over-dispersed counts under a Poisson model: held-out against in-sample checks.

Model Pois(theta), theta ~ Gamma(.1, .2), exact posterior; half of 1,000 counts held out. Expected:
under the truth the held-out check rejects 5 %; with negative-binomial data it rejects through the
mean too, which the in-sample check cannot, since the posterior fits the mean by construction.

    python benchmarks/calibration/poisson.py --out docs/studies/poisson.csv
"""

from __future__ import annotations

import torch
from simulations import seeded_gamma
from study import (
    DataSets,
    PValues,
    Simulation,
    arguments,
    check_sets,
    mean,
    ppc_suite,
    rates,
    report,
    variance,
    zeros,
)
from torch import Tensor

from probinterp.criticism import PredictiveDraw, pop_pc_suite
from probinterp.models.exact import PoissonGamma

N_COUNTS, MEAN = 1000, 2.0
SIZES = {"Pois(2)": None, "NB(2, size .01)": 0.01, "NB(2, size 20)": 20.0}
CHECKS = {"pop_pc": pop_pc_suite, "ppc": ppc_suite}


def second_moment(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Mean square of each data set."""
    return x.square().mean((1, 2))


def third_moment(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Mean cube of each data set."""
    return x.pow(3).mean((1, 2))


def squared_error(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Mean squared distance of each data set from the rate of the draw."""
    return (x - draw.likelihood(x.flatten(0, 1)).mean).square().mean((1, 2))


STATISTICS = {
    "mean": mean,
    "second moment": second_moment,
    "third moment": third_moment,
    "variance": variance,
    "zeros": zeros,
}


def counts(size: float | None, *, in_sample: bool = False) -> Simulation:
    """Counts with mean 2, negative binomial of the given size; ``size`` None: Poisson."""

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        rate = torch.full((n_sets, N_COUNTS, 1), MEAN, dtype=torch.float64)
        if size is not None:
            rate = seeded_gamma(size, size / MEAN, (n_sets, N_COUNTS, 1), seed)
        x = torch.poisson(rate, generator=torch.Generator().manual_seed(seed + 1))
        x_obs, x_new = x.chunk(2, dim=1)
        draws = PoissonGamma(x_obs).draws(N_COUNTS // 2, n_draws, seed=seed)
        return DataSets(draws, x_obs if in_sample else x_new)

    return simulate


def p_values(data: str, check: str, n_sets: int, n_draws: int, seed: int) -> dict[str, PValues]:
    """p-values of one check on one kind of data, by statistic; the realised one comes last."""
    simulate = counts(SIZES[data], in_sample=check == "ppc")
    options = {"n_sets": n_sets, "n_draws": n_draws, "seed": seed, "check": CHECKS[check]}
    realised = {"squared error, realised": squared_error}
    return check_sets(simulate, STATISTICS, **options) | check_sets(
        simulate, realised, kind="realised", **options
    )


def main() -> None:
    options = arguments(__doc__, n_sets=1000, n_draws=399)
    rows = []
    for data in SIZES:
        for check in CHECKS:
            found = p_values(data, check, options.sets, options.draws, options.seed)
            for statistic, p in found.items():
                rows.append({"data": data, "check": check, "statistic": statistic} | rates(p))
    report(rows, options.out)


if __name__ == "__main__":
    main()
