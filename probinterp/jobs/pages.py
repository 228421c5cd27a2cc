"""The report of a fit and its checks as one HTML page."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import probinterp
from probinterp.genomics import marker_groups, top_genes
from probinterp.inference import log_predictive_density
from probinterp.jobs.checking import Checked, check_cells
from probinterp.jobs.fitting import Fitted, read_fit
from probinterp.reporting import (
    Figure,
    Section,
    Table,
    Verdict,
    factor_activity,
    loadings_heatmap,
    pop_pc_distribution,
    pop_pc_features,
    training_curve,
    write_report,
)

MARKED = 0.8  # separation from which a factor is said to mark a group
LARGEST_MAP = 15  # factors up to which the heat map names five genes each


def factor_table(fitted: Fitted, group_key: str | None, n_genes: int = 8) -> pd.DataFrame:
    """One row a factor: genes it reaches, the cell group it marks, and its top genes.

    Genes that fall as the score rises carry a minus sign. A group is named with its AUC in the
    direction of the separation; only a separation of at least 0.8 counts as a mark.
    """
    found, genes = fitted.factors, fitted.train.var_names
    tops = top_genes(found, n_genes, var_names=genes, by_effect=True).groupby("factor", sort=False)
    support = found.support
    assert support is not None
    marks = _marks(fitted, group_key)
    rows = []
    for column, (name, top) in enumerate(tops):
        sign = top["effect"] if "effect" in top else top["loading"]
        listed = [f"{'-' if s < 0 else ''}{g}" for g, s in zip(top["gene"], sign, strict=True)]
        size, mark = int(support[:, column].sum()), marks.get(str(name), {})
        rows.append({"factor": name, **mark, "genes": size, "top genes": ", ".join(listed)})
    return pd.DataFrame(rows)


def write_page(
    path: Path,
    fitted: Fitted,
    checked: Mapping[str, Checked],
    comparison: pd.DataFrame,
    *,
    group_key: str | None,
    title: str,
    settings: Mapping[str, Any],
) -> Path:
    """Write the report.

    Parameters
    ----------
    path
        HTML file to write.
    fitted
        The fit.
    checked
        Checks per model, the fitted model first.
    comparison
        Held-out log predictive densities, one row a model.
    group_key
        Column of ``obs`` with cell groups, or None.
    title, settings
        Heading, and settings to list beside the versions.
    """
    versions = {
        "probinterp": probinterp.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    sections = [
        _found(fitted, group_key),
        _comparison(comparison),
        *(_checks(name, result) for name, result in checked.items()),
        _training(fitted),
    ]
    verdicts = [v for name, result in checked.items() for v in _verdicts(name, result)]
    return write_report(
        path,
        title=title,
        sections=sections,
        verdicts=verdicts,
        settings=dict(settings) | versions,
    )


def report_directory(
    directory: str | Path, *, group_key: str | None = None, n_draws: int = 200, seed: int = 0
) -> Path:
    """Check the model that ``probinterp fit`` wrote into ``directory`` and write its report."""
    fitted = read_fit(directory)
    if group_key is not None and group_key not in fitted.adata.obs:
        available = sorted(map(str, fitted.adata.obs))
        raise KeyError(f"{group_key!r} not in adata.obs; available: {available}.")
    checked = check_cells(
        fitted.model, fitted.heldout, n_obs=len(fitted.train), n_draws=n_draws, seed=seed
    )
    density = log_predictive_density(fitted.model, fitted.heldout.batch(), seed=seed)
    return write_page(
        Path(directory) / "report.html",
        fitted,
        {"sparse VAE": checked},
        compare_densities({"sparse VAE": density}),
        group_key=group_key,
        title=f"Sparse VAE of {len(fitted.adata)} cells",
        settings={"directory": str(directory), "seed": seed, "draws": n_draws},
    )


def compare_densities(densities: Mapping[str, Tensor]) -> pd.DataFrame:
    """Mean log density of each model and its paired difference from the first one.

    Parameters
    ----------
    densities
        Log predictive density per held-out cell, (N,), for each model.

    Returns
    -------
    DataFrame
        Columns ``model``, ``nats per cell``, ``difference`` (the first model minus this one) and
        ``standard error`` of the difference, over cells.
    """
    first = next(iter(densities.values()))
    rows = []
    for name, values in densities.items():
        gap = first - values
        error = gap.std().item() / math.sqrt(len(gap))
        rows.append((name, values.mean().item(), gap.mean().item(), error))
    return pd.DataFrame(rows, columns=["model", "nats per cell", "difference", "standard error"])


def _marks(fitted: Fitted, group_key: str | None) -> dict[str, dict[str, Any]]:
    if group_key is None:
        return {}
    labels = fitted.adata.obs[group_key].astype(str).to_numpy()
    kept = fitted.adata.obs[group_key].notna().to_numpy()
    table = marker_groups(fitted.factors.scores[torch.from_numpy(kept)], labels[kept])
    best = table[table["best"]]
    return {row["factor"]: _mark(row) for row in best.to_dict("records")}


def _mark(row: Mapping[Any, Any]) -> dict[str, Any]:
    side = "high" if row["sign"] > 0 else "low"
    marked = f"{row['group']} ({side})" if row["separation"] >= MARKED else "-"
    return {"marks": marked, "AUC": round(row["separation"], 2)}


def _found(fitted: Fitted, group_key: str | None) -> Section:
    found, genes = fitted.factors, [str(name) for name in fitted.train.var_names]
    n_top = 5 if len(found.columns) <= LARGEST_MAP else 2
    effects = found.loadings if found.effects is None else found.effects
    figures = [
        Figure(
            loadings_heatmap(effects, found.inclusion, feature_names=genes, n_top=n_top),
            "Decoded effect of each factor on the log mean of its genes, in standard deviations "
            "over cells; every column is scaled to its largest entry.",
        )
    ]
    if group_key is not None:
        groups = fitted.adata.obs[group_key].astype(str).to_numpy()
        figures.append(
            Figure(
                factor_activity(found.scores, groups),
                f"Factor scores by {group_key}, standardised over cells.",
            )
        )
    table = Table(
        factor_table(fitted, group_key),
        "Factors, the cell group whose cells they separate best from all others (AUC in the "
        f"direction given; named from {MARKED} on), and their top genes by decoded effect. A minus "
        "marks genes that fall as the score rises.",
    )
    text = (
        f"{len(found.columns)} factors of {fitted.train.n_vars} genes, fitted to "
        f"{len(fitted.train)} cells; {len(fitted.heldout)} cells were held out. Signs and order "
        "of factors are arbitrary."
    )
    return Section("What the model found", text, figures, [table])


def _comparison(comparison: pd.DataFrame) -> Section:
    text = (
        "Log predictive density of held-out counts, factors integrated out by importance "
        "sampling, in nats per cell: larger is better. Differences are paired over cells."
    )
    caption = "Held-out log predictive density"
    return Section("Does it predict new cells?", text, tables=[Table(comparison, caption)])


def _checks(name: str, checked: Checked) -> Section:
    figures = []
    for check, result in checked.results.items():
        if result.uniform.ndim == 0:
            axes, caption = pop_pc_distribution(result), f"{name}: {check}."
        else:
            axes = pop_pc_features(result, feature_names=checked.var_names)
            caption = f"{name}: {check}, effect size of every gene."
        figures.append(Figure(axes, caption))
    notes = sorted({note for result in checked.results.values() for note in result.notes})
    text = "Replicated data sets against the held-out cells. " + " ".join(notes)
    table = Table(checked.table(), "For checks per gene: median |z| and smallest adjusted p.")
    return Section(f"Predictive checks: {name}", text, figures, [table])


def _training(fitted: Fitted) -> Section:
    history = fitted.restarts.histories[fitted.restarts.best_index]
    caption = "Loss per cell (negative ELBO) in training and on held-out cells."
    text = "; ".join(
        f"seed {seed}: objective {objective:.2f} per cell"
        for seed, objective in zip(fitted.restarts.seeds, fitted.restarts.objectives, strict=True)
    )
    return Section("Training", text, [Figure(training_curve(history), caption)])


def _verdicts(name: str, checked: Checked) -> list[Verdict]:
    verdicts = []
    for result in checked.results.values():
        passed = bool((result.p_adjusted > 0.05).all())
        verdicts.append(Verdict(f"{name}: {result.verdict(0.05)}", passed))
    return verdicts
