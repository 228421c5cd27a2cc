"""The demonstration: real blood cells, a sparse VAE, a baseline, checks and a report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probinterp.genomics import datasets
from probinterp.inference import EarlyStopping, cosine, fit, log_predictive_density
from probinterp.jobs.checking import check_cells, check_n_draws
from probinterp.jobs.fitting import Fitted, fit_cells, output_folder, write_fit, write_json
from probinterp.jobs.pages import compare_densities, factor_table, write_page
from probinterp.likelihoods import RoundedLogNormalLikelihood
from probinterp.models import FactorAnalysis, ProbabilisticModel

GROUPS = "bulk_labels"
BASELINE = "factor analysis"
OURS = "sparse VAE"


def run_demo(
    out: str | Path = "demo",
    *,
    seed: int = 0,
    device: str = "auto",
    n_draws: int = 200,
    max_epochs: int = 150,
    progress: bool = True,
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Fit the sparse VAE and factor analysis to pbmc68k counts, check both, write a report.

    Parameters
    ----------
    out
        Directory for ``report.html``, ``adata.h5ad``, ``model/`` and ``summary.json``.
    seed
        Seed of split, fit and checks.
    device
        Where to fit.
    n_draws
        Replicates a check.
    max_epochs
        Longest training.
    progress
        Show progress bars.

    Returns
    -------
    tuple
        Summary, table of factors, and table of held-out densities.
    """
    check_n_draws(n_draws)
    folder = output_folder(out)
    adata = datasets.pbmc68k()
    fitted = fit_cells(
        adata,
        size_factor_key="n_counts",
        stratify=GROUPS,
        max_epochs=max_epochs,
        seed=seed,
        device=device,
        progress=progress,
    )
    if any(history.stopped == "interrupted" for history in fitted.restarts.histories):
        raise KeyboardInterrupt  # half a comparison would mislead
    baseline = _factor_analysis(fitted, max_epochs, seed, device, progress)
    models: dict[str, ProbabilisticModel] = {OURS: fitted.model, BASELINE: baseline}
    densities = {
        name: log_predictive_density(model, fitted.heldout.batch(), n_samples=200, seed=seed)
        for name, model in models.items()
    }
    comparison = compare_densities(densities)
    n_obs = len(fitted.train)
    check = partial(check_cells, heldout=fitted.heldout, n_obs=n_obs, n_draws=n_draws, seed=seed)
    check = partial(check, progress=progress)
    checked = {name: check(model) for name, model in models.items()}
    summary = write_fit(fitted, folder) | {
        "heldout_log_density": comparison.to_dict("records"),
        "checks": {name: found.table().to_dict("records") for name, found in checked.items()},
    }
    table = factor_table(fitted, GROUPS)
    summary["factors"] = table.to_dict("records")
    summary = write_json(folder / "summary.json", summary)
    write_page(
        folder / "report.html",
        fitted,
        checked,
        comparison,
        group_key=GROUPS,
        title="Sparse VAE of 700 blood cells",
        settings={"data": adata.uns.get("source", "pbmc68k"), "seed": seed, "draws": n_draws},
    )
    return summary, table, comparison


def _factor_analysis(
    fitted: Fitted, max_epochs: int, seed: int, device: str, progress: bool
) -> FactorAnalysis:
    """Gaussian factor analysis of log(1 + x / s), as a model of the counts themselves."""
    n_genes, n_factors = fitted.train.n_vars, fitted.model.configuration["arguments"]["n_factors"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        likelihood = RoundedLogNormalLikelihood(n_genes)
        model = FactorAnalysis(n_genes, n_factors, likelihood=likelihood)
    fit(
        model,
        fitted.train,
        max_epochs=max_epochs,
        batch_size=64,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        schedule=cosine,
        heldout=fitted.heldout,
        early_stopping=EarlyStopping(patience=5, every=5, after=0.2),
        seed=seed,
        device=device,
        progress=progress,
    )
    return model
