"""Over-dispersed counts under a Poisson model: held-out against in-sample checks.

Model Pois(theta), theta ~ Gamma(.1, .2), exact posterior; half of 1,000 counts held out. Expected:
under the truth the held-out check rejects 5 %; with negative-binomial data it rejects through the
mean too, which the in-sample check cannot, since the posterior fits the mean by construction.

    python benchmarks/calibration/poisson.py --sets 200 --out poisson.csv
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from study import arguments, rates, report
from torch import Tensor
from torch.distributions import Poisson

from probinterp.criticism import FunctionDraw, PopPCResult, RegimeWarning, pop_pc, ppc

SHAPE, RATE, N_COUNTS, MEAN = 0.1, 0.2, 1000, 2.0
SIZES = {"Pois(2)": None, "NB(2, size .01)": 0.01, "NB(2, size 20)": 20.0}
STATISTICS = ("mean", "second moment", "third moment", "squared error, realised")


def simulate(size: float | None, n_sets: int, seed: int) -> tuple[Tensor, Tensor]:
    """Observed and held-out counts, shape (N / 2, D) each; ``size`` None gives Poisson counts."""
    random = np.random.default_rng(seed)
    rate = MEAN if size is None else random.gamma(size, MEAN / size, (N_COUNTS, n_sets))
    counts = torch.as_tensor(random.poisson(rate, (N_COUNTS, n_sets)), dtype=torch.float64)
    return counts[: N_COUNTS // 2], counts[N_COUNTS // 2 :]


def posterior_draw(x_obs: Tensor) -> FunctionDraw:
    """Draw of the D rates from their exact posteriors, for data of the size of ``x_obs``."""
    gamma = torch.distributions.Gamma(SHAPE + x_obs.sum(0), RATE + len(x_obs))
    law = Poisson(gamma.sample().expand_as(x_obs), validate_args=False)
    return FunctionDraw(law.sample, lambda x: law)


def moments(x: Tensor, draw: FunctionDraw) -> Tensor:
    """First three moments of each data set, shape (3 D,)."""
    return torch.cat([x.mean(0), x.square().mean(0), x.pow(3).mean(0)])


def squared_error(x: Tensor, draw: FunctionDraw) -> Tensor:
    """Mean squared distance of each data set from its rate, shape (D,)."""
    return (x - draw.likelihood(x).mean).square().mean(0)


def checks(name: str, n_sets: int, n_draws: int, seed: int) -> dict[str, list[PopPCResult]]:
    """Run the held-out and the in-sample check: moments, then the realised squared error."""
    x_obs, x_new = simulate(SIZES[name], n_sets, seed)

    def run(check, x: Tensor, discrepancy, kind: str) -> PopPCResult:
        draws = (posterior_draw(x_obs) for _ in range(n_draws + (kind == "plugin")))
        return check(draws, x, discrepancy, kind=kind, seed=seed)

    kinds = ((moments, "plugin"), (squared_error, "realised"))
    return {
        "pop_pc": [run(_pop_pc_of_columns, x_new, d, kind) for d, kind in kinds],
        "ppc": [run(ppc, x_obs, d, kind) for d, kind in kinds],
    }


def _pop_pc_of_columns(*data: object, **options: object) -> PopPCResult:
    # The regime number of one data set is sqrt(2 * 500) / 500 = .06; that of all D together,
    # which is what the call sees, is sqrt(D) times as large.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegimeWarning)
        return pop_pc(*data, **options)


def table(name: str, n_sets: int, n_draws: int, seed: int) -> list[dict]:
    """Rates of each check and statistic for one kind of data."""
    rows = []
    for check, (first, second) in checks(name, n_sets, n_draws, seed).items():
        parts = [(first, slice(k * n_sets, (k + 1) * n_sets)) for k in range(3)]
        for statistic, (result, part) in zip(
            STATISTICS, [*parts, (second, slice(None))], strict=True
        ):
            settings = {"data": name, "check": check, "statistic": statistic}
            rows.append(settings | rates(result, part))
    return rows


def main() -> None:
    options = arguments(__doc__, n_sets=200, n_draws=499)
    rows = []
    for name in SIZES:
        rows += table(name, options.sets, options.draws, options.seed)
    report(rows, options.out)


if __name__ == "__main__":
    main()
