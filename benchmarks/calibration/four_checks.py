"""PPC, divided split check, Pop-PC and calibrated PPC, under the truth and under planted misfit.

Four models with exact posteriors, one statistic each; half of the units held out where data are
held out. Expected: under the truth the three calibrated checks reject 5 %, the PPC far more or far
less; under misfit the PPC is blind to what the model fits by construction, and calibrating it
repairs its size.

    python benchmarks/calibration/four_checks.py --out docs/studies/four_checks.csv
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from figures import plot_four_checks
from misfits import MODELS, Model, Rows
from scipy.stats import kstest
from study import PValues, arguments, check_side_by_side, ppc_suite, rates, report

from probinterp.criticism import PopPCResult

N_REFITS = 39  # of the calibrated check; it and they have as many draws, or their p differ


def pop_pc(model: Model, rows: Rows, n_draws: int, seed: int) -> PValues:
    """Check the second half of the units, fit to the first."""
    return PValues.of(_heldout(model, rows, n_draws, seed))


def classical(model: Model, rows: Rows, n_draws: int, seed: int) -> PValues:
    """Check the data of the fit."""
    return PValues.of(_in_sample(model, rows, n_draws, seed))


def divided(model: Model, rows: Rows, n_draws: int, seed: int) -> PValues:
    """Check the second half of each block, and test the p-values for uniformity."""
    n_sets = len(rows.x)
    ranks = _heldout(model, rows.blocks(model.n_blocks), n_draws, seed).p_rank
    p = [kstest(blocks.numpy(), "uniform").pvalue for blocks in ranks.view(n_sets, -1)]
    return PValues(torch.tensor(p), torch.tensor(p))  # one-sided: a large p is no misfit


def calibrated(model: Model, rows: Rows, n_draws: int, seed: int) -> PValues:
    """Compare the p-value of the classical check with those of data the fit simulates."""
    seeds = np.random.SeedSequence(seed).generate_state(N_REFITS + 1).tolist()
    observed = _in_sample(model, rows, N_REFITS, seeds[-1]).p_randomised
    again = model.again(rows)
    below = torch.zeros_like(observed)
    for refit_seed in seeds[:-1]:
        with torch.random.fork_rng():
            torch.manual_seed(refit_seed)
            simulated = rows._replace(x=again())
        refit = _in_sample(model, simulated, N_REFITS, refit_seed).p_randomised
        below += refit < observed
        below += 0.5 * (refit == observed)
    uniform = torch.rand(below.shape, generator=torch.Generator().manual_seed(seed))
    rank = (below + uniform) / (N_REFITS + 1)
    two_sided = 2 * torch.minimum(below + 1, N_REFITS + 1 - below) / (N_REFITS + 1)
    return PValues(rank, two_sided.clamp(max=1))


def _heldout(model: Model, rows: Rows, n_draws: int, seed: int) -> PopPCResult:
    observed, new = rows.halves()
    draws = model.new(observed, new, n_draws, seed)
    return check_side_by_side(draws, new.x, model.statistic, seed=seed)


def _in_sample(model: Model, rows: Rows, n_draws: int, seed: int) -> PopPCResult:
    draws = model.same(rows, n_draws, seed)
    return check_side_by_side(draws, rows.x, model.statistic, seed=seed, check=ppc_suite)


CHECKS: dict[str, Callable[[Model, Rows, int, int], PValues]] = {
    "PPC": classical,
    "divided split": divided,
    "Pop-PC": pop_pc,
    "calibrated PPC": calibrated,
}


class Cell(NamedTuple):
    """p-values of one model and check at one strength of the misfit."""

    model: str
    check: str
    strength: float
    p: PValues


def main() -> None:
    options = arguments(__doc__, n_sets=500, n_draws=199)
    torch.set_num_threads(1)
    cells = []
    for name, model in MODELS.items():
        for level, strength in enumerate(model.strengths):
            seeds = np.random.SeedSequence((options.seed, level)).generate_state(2).tolist()
            rows = model.data(options.sets, strength, seeds[0])
            for check, p_values in CHECKS.items():
                cells.append(
                    Cell(name, check, strength, p_values(model, rows, options.draws, seeds[1]))
                )
    report(
        [
            {"model": c.model, "check": c.check, "misfit": MODELS[c.model].misfit}
            | {"strength": c.strength}
            | rates(c.p)
            for c in cells
        ],
        options.out,
    )
    if options.out is not None:
        plot_four_checks(cells, MODELS, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
