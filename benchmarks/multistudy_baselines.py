"""The multi-study sparse VAE against every baseline, on data whose truth is known.

    python benchmarks/multistudy_baselines.py --nonlinear 0 1 2 3 4 --linear 10 \
        --out docs/studies/multistudy_baselines.csv

Nonlinear: ``simulate.multistudy``, 3 x 200 observations, 3 x 100 new ones, log predictive density
per observation and its paired standard error. Linear: the scenario of the multi-study factor
analysis literature, 60 features and 10 to 15 observations of each of four studies, RV coefficient
of the covariances of the studies.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probinterp import simulate
from probinterp.baselines import (
    Baseline,
    Comparison,
    PerStudy,
    StackedFactorAnalysis,
    StudyMeans,
    compare,
    multistudy_factor_analysis,
    multistudy_sparse_vae,
    sparse_vae,
    vae,
)
from probinterp.inference import ArrayData, late_cosine
from probinterp.likelihoods import GaussianLikelihood

OURS = "multi-study sparse VAE"
FITTING: dict[str, Any] = {
    "max_epochs": 300,
    "batch_size": 100,
    "schedule": late_cosine,
    "optimizer": partial(torch.optim.Adam, lr=1e-2),
}
SPARSE: dict[str, Any] = {
    "n_hidden": 50,
    "spike": 300.0,
    "slab": 10.0,
    "start": "components",
    "kl_warmup": 0.2,
    "fitting": FITTING,
}


def nonlinear() -> list[Baseline]:
    return [
        multistudy_sparse_vae(6, 2, name=OURS, **SPARSE),
        multistudy_sparse_vae(6, 2, name=f"{OURS}, not mended", mended=False, **SPARSE),
        sparse_vae(12, **SPARSE),
        PerStudy(sparse_vae(8, **SPARSE), "per-study sparse VAE"),
        vae(6, n_hidden=50, fitting=FITTING),
        multistudy_factor_analysis(3, 1),
        StackedFactorAnalysis(6),
        PerStudy(StackedFactorAnalysis(4), "per-study FA"),
        StudyMeans(GaussianLikelihood),
    ]


def linear(n_obs: int) -> list[Baseline]:
    sparse = SPARSE | {"spike": 0.5 * n_obs, "slab": 0.03 * n_obs}
    return [
        multistudy_sparse_vae(6, 2, name=OURS, **sparse),
        multistudy_sparse_vae(6, 2, name=f"{OURS}, not mended", mended=False, **sparse),
        multistudy_factor_analysis(3, 1),
        StackedFactorAnalysis(3),
        sparse_vae(12, **sparse),
    ]


def rows(found: Comparison, scenario: str, seed: int) -> list[dict[str, Any]]:
    ours = found.result(OURS).log_density
    table = []
    for result in found.results:
        gap = ours - result.log_density
        correlation = result.correlation
        table.append(
            {
                "scenario": scenario,
                "seed": seed,
                "method": result.name,
                "log_density": result.log_density.mean().item(),
                "ours_minus": gap.mean().item(),
                "standard_error": gap.std().item() / len(gap) ** 0.5,
                "rv": result.rv.mean().item(),
                "frobenius": result.frobenius.mean().item(),
                "consensus": result.support["all"].consensus if result.support else None,
                "shared_min": None
                if correlation is None
                else correlation.shared[correlation.block < 0].min().item(),
                "seconds": result.seconds,
            }
        )
    return table


def run(scenario: str, seed: int) -> list[dict[str, Any]]:
    if scenario == "nonlinear":
        truth, methods = simulate.multistudy(seed=seed), nonlinear()
    else:
        truth = simulate.linear_multistudy(seed=seed)
        methods = linear(len(truth.x))
    train, new = ArrayData(truth.x, study=truth.study), truth.more(100, seed=seed)
    found = compare(methods, train, ArrayData(new.x, study=new.study), truth=truth, seed=seed)
    return rows(found, scenario, seed)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    grouped = table.groupby(["scenario", "method"], sort=False)
    means = grouped[["log_density", "ours_minus", "rv", "frobenius", "consensus", "seconds"]].mean()
    means.insert(0, "sets", grouped.size())
    means["rv_s.e."] = grouped["rv"].std() / means["sets"] ** 0.5
    means["smallest_gap_in_s.e."] = (
        (table["ours_minus"] / table["standard_error"])
        .groupby([table["scenario"], table["method"]], sort=False)
        .min()
    )
    return means.round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nonlinear", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--linear", type=int, default=10, help="number of linear data sets")
    parser.add_argument("--out", type=Path, help="CSV file with one row a method and data set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    tasks = [("linear", seed) for seed in range(options.linear)]
    tasks += [("nonlinear", seed) for seed in options.nonlinear]
    for scenario, seed in tasks:
        table += run(scenario, seed)
        print(f"{scenario} {seed} done", flush=True)
        if options.out:
            pd.DataFrame(table).round(4).to_csv(options.out, index=False)
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        print(summary(pd.DataFrame(table)).to_string())


if __name__ == "__main__":
    main()
