"""Recovery of the sparse VAE on its published simulation, with VAE and factor analysis beside it.

    python benchmarks/sparse_vae_simulation.py --sets 6 --restarts 3 --rho 0 0.4 0.8 --jobs 2

Every data set: 1000 rows of ``simulate.sparse_vae_toy``, each row for training with probability
one half. The restart with the best training objective is kept; the truth is used for scoring only.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.ensemble import GradientBoostingRegressor

from probinterp import simulate
from probinterp.inference import ArrayData, factors, fit_restarts, late_cosine, posterior
from probinterp.inference.svi import constant
from probinterp.models import (
    VAE,
    Batch,
    CorrelatedNormalPrior,
    FactorAnalysis,
    ProbabilisticModel,
    SparseVAE,
)

N_FACTORS, N_HIDDEN, BATCH, RATE = 5, 50, 100, 1e-2
COLLAPSED = 2.0  # held-out mean squared error from which a run has lost a factor


def sparse_vae(**options: Any) -> SparseVAE:
    settings = {"n_hidden": N_HIDDEN, "spike": 500.0, "slab": 30.0} | options
    return SparseVAE(7, N_FACTORS, **settings)


def correlated(**options: Any) -> SparseVAE:
    return sparse_vae(prior=CorrelatedNormalPrior(N_FACTORS), **options)


def released() -> SparseVAE:
    return sparse_vae(objective="released", spike=10.0, slab=1.0)


RECIPE = {"max_epochs": 1000, "schedule": late_cosine}
PLAIN = {"max_epochs": 200, "schedule": constant}
# name: (factory, options of the fit, restarts or None for those of the command line)
METHODS: dict[str, tuple[Callable[[], ProbabilisticModel], dict[str, Any], int | None]] = {
    "sparse VAE": (sparse_vae, RECIPE, None),
    "+ full covariance": (partial(sparse_vae, full_covariance=True), RECIPE, None),
    "+ correlated prior": (correlated, RECIPE, None),
    "+ both": (partial(correlated, full_covariance=True), RECIPE, None),
    "- epochs: 200": (sparse_vae, RECIPE | {"max_epochs": 200}, None),
    "- decay": (sparse_vae, RECIPE | {"schedule": constant}, None),
    "- warm-up .5": (partial(sparse_vae, kl_warmup=0.5), RECIPE, None),
    "- slab 5": (partial(sparse_vae, slab=5.0), RECIPE, None),
    "- restarts: 1": (sparse_vae, RECIPE, 1),
    "+ prune at .6": (partial(sparse_vae, prune_after=0.6), RECIPE, None),
    "released objective": (released, PLAIN, 1),
    "VAE": (partial(VAE, 7, N_FACTORS, n_hidden=N_HIDDEN), RECIPE, None),
    "factor analysis": (partial(FactorAnalysis, 7, N_FACTORS), RECIPE, 1),
}
MAIN = ("sparse VAE", "+ full covariance", "+ correlated prior", "+ both", "VAE", "factor analysis")


def disentanglement(codes: np.ndarray, truth: np.ndarray, seed: int = 0) -> float:
    """DCI disentanglement: 1 where every code is important for one true factor only."""
    importance = np.stack(
        [
            GradientBoostingRegressor(random_state=seed).fit(codes, z).feature_importances_
            for z in truth.T
        ],
        axis=1,
    )
    share = (importance + 1e-11) / (importance + 1e-11).sum(1, keepdims=True)
    entropy = -(share * np.log(share)).sum(1) / np.log(truth.shape[1])
    return float(((1 - entropy) * importance.sum(1)).sum() / importance.sum())


def support_distance(support: np.ndarray, codes: np.ndarray, truth: simulate.SparseTruth) -> float:
    """Hamming distance of the matched support; NaN where two factors pick the same code."""
    k = codes.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        correlation = np.corrcoef(codes.T, truth.z.numpy().T)[:k, k:]
    chosen = np.abs(np.nan_to_num(correlation)).argmax(0)
    if len(set(chosen)) < len(chosen):
        return float("nan")
    expected = np.zeros_like(support)
    expected[:, chosen] = truth.support.numpy()
    return float((support != expected).sum())


def run(name: str, rho: float, number: int, restarts: int) -> dict[str, Any]:
    """Fit one method to one data set and score it."""
    torch.set_num_threads(1)
    make, options, own = METHODS[name]
    truth = simulate.sparse_vae_toy(rho, seed=100 + number)
    train = torch.rand(1000, generator=torch.Generator().manual_seed(number)) < 0.5
    x_train, x_new = truth.x[train], truth.x[~train]
    heldout = truth._replace(x=x_new, z=truth.z[~train])
    started = time.process_time()
    result = fit_restarts(
        make,
        ArrayData(x_train),
        seeds=range(10 * number, 10 * number + (own or restarts)),
        batch_size=BATCH,
        optimizer=partial(torch.optim.Adam, lr=RATE, fused=True),
        progress=False,
        **options,
    )
    seconds = (time.process_time() - started) / len(result.models)
    errors = [squared_error(model, x_new) for model in result.models]
    model = result.best
    codes = posterior(model, Batch(x_new))["z"].mean[:500].numpy()
    scores = {
        "method": name,
        "rho": rho,
        "set": number,
        "DCI": disentanglement(codes, heldout.z[:500].numpy()),
        "MSE": errors[result.best_index],
        "collapsed": float(np.mean([error > COLLAPSED for error in errors])),
        "seconds": seconds,
    }
    scale = model.likelihood.scale.detach()
    scale = scale / 7**0.5 if name.startswith("released") else scale
    scores |= {f"sigma_{j + 1}": float(s) for j, s in enumerate(scale)}
    if isinstance(model, SparseVAE):
        found = factors(model, ArrayData(x_train))
        support = np.zeros((7, N_FACTORS), dtype=bool)
        support[:, found.columns.numpy()] = found.support.numpy()
        distance = support_distance(support, codes, heldout._replace(z=heldout.z[:500]))
        scores |= {"support": int(support.sum()), "Hamming": distance}
    return scores


@torch.no_grad()
def squared_error(model: ProbabilisticModel, x: torch.Tensor) -> float:
    """Held-out mean squared error, decoded at the posterior mean."""
    z = posterior(model, Batch(x))["z"].mean
    return float((model.decode(z) - x).square().mean())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method and rho: medians and worst cases over data sets."""
    sigmas = [column for column in table if str(column).startswith("sigma_")]
    table = table.assign(
        low=table[sigmas].min(1),
        high=table[sigmas].max(1),
        within=((table[sigmas] > 0.45) & (table[sigmas] < 0.55)).mean(1),
    )
    grouped = table.groupby(["rho", "method"], sort=False)
    return pd.DataFrame(
        {
            "DCI med": grouped["DCI"].median(),
            "DCI min": grouped["DCI"].min(),
            "MSE med": grouped["MSE"].median(),
            "MSE max": grouped["MSE"].max(),
            "MSE<=.375": grouped["MSE"].apply(lambda v: (v <= 0.375).mean()),
            "Hamming med": grouped["Hamming"].median(),
            "Hamming max": grouped["Hamming"].max(),
            "support": grouped["support"].median(),
            "sigma min": grouped["low"].min(),
            "sigma max": grouped["high"].max(),
            "in 10 %": grouped["within"].mean(),
            "collapsed": grouped["collapsed"].mean(),
            "s/fit": grouped["seconds"].mean(),
        }
    ).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--rho", type=float, nargs="+", default=[0.0, 0.4, 0.8])
    parser.add_argument("--methods", nargs="+", default=list(MAIN), choices=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="CSV file with one row a data set")
    options = parser.parse_args()
    tasks = [
        delayed(run)(name, rho, number, options.restarts)
        for rho in options.rho
        for name in options.methods
        for number in range(options.sets)
    ]
    rows = []
    for row in Parallel(n_jobs=options.jobs, return_as="generator")(tasks):
        rows.append(row)
        if options.out:
            pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows)
    for column in ("Hamming", "support"):
        table[column] = table.get(column, np.nan)
    with pd.option_context("display.width", 200, "display.max_columns", 30):
        print(summary(table).to_string())


if __name__ == "__main__":
    main()
