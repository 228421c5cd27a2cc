"""The report of a fit and its checks as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from probinterp.genomics import marker_groups, top_genes
from probinterp.inference import log_predictive_density
from probinterp.inference.posterior import SHARED_NAME
from probinterp.jobs.check_pages import check_findings, checks_section, versions
from probinterp.jobs.checking import Checked, check_cells, check_n_draws
from probinterp.jobs.fitting import SPLIT_COLUMN, Fitted, read_fit
from probinterp.reporting import (
    Figure,
    Finding,
    Section,
    Table,
    factor_activity,
    loadings_heatmap,
    training_curve,
    write_report,
)

MARKED = 0.8  # separation from which a factor is said to mark a group
LARGEST_MAP = 15  # factors up to which the heat map names five genes each


def factor_table(fitted: Fitted, group_key: str | None, n_genes: int = 6) -> pd.DataFrame:
    """One row a factor: its block, the cell group it marks, the genes that rise and fall with it.

    Genes are ordered by decoded effect. A group is named with its AUC in the direction of the
    separation; only a separation of at least 0.8 counts as a mark.
    """
    found, genes = fitted.factors, fitted.train.var_names
    studies = fitted.train.study_names
    table = top_genes(found, len(genes), var_names=genes, by_effect=True, study_names=studies)
    support = found.support
    assert support is not None
    marks, blocks, rows = _marks(fitted, group_key), fitted.blocks, []
    for name, top in table.groupby("factor", sort=False):
        column = fitted.factor_names.index(str(name))
        rise, fall = (top[side]["gene"].head(n_genes) for side in (top.effect > 0, top.effect < 0))
        size, mark = int(support[:, column].sum()), marks.get(str(name), {})
        listed = {"genes": size, "rise": ", ".join(rise), "fall": ", ".join(fall)}
        block = {} if blocks is None else {"block": blocks[column]}
        rows.append({"factor": name, **block, **mark, **listed})
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
    sections = [
        _found(fitted, group_key),
        _comparison(comparison),
        *(checks_section(name, result) for name, result in checked.items()),
        _training(fitted),
    ]
    findings = _findings(fitted, next(iter(checked.values())), comparison, group_key)
    return write_report(
        path,
        title=title,
        sections=sections,
        findings=findings,
        settings=dict(settings) | versions(),
    )


def report_directory(
    directory: str | Path,
    *,
    group_key: str | None = None,
    n_draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Check the model that ``probinterp fit`` wrote into ``directory`` and write its report."""
    check_n_draws(n_draws)
    fitted = read_fit(directory)
    if group_key is not None and group_key not in fitted.adata.obs:
        available = sorted(map(str, fitted.adata.obs))
        raise KeyError(f"{group_key!r} not in adata.obs; available: {available}.")
    checked = check_cells(
        fitted.model,
        fitted.heldout,
        n_obs=len(fitted.train),
        n_draws=n_draws,
        seed=seed,
        progress=progress,
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
    if group_key is None or len(fitted.factors.columns) == 0:
        return {}
    groups = _groups(fitted, group_key)
    known = groups.notna().to_numpy()
    # a copy: pandas 3 hands out read-only arrays
    scores = fitted.factors.scores[torch.tensor(known)].numpy()
    named = pd.DataFrame(scores, columns=fitted.factor_names)
    table = marker_groups(named, groups[known].astype(str).to_numpy())
    best = table[table["best"]]
    return {row["factor"]: _mark(row) for row in best.to_dict("records")}


def _groups(fitted: Fitted, group_key: str) -> pd.Series:
    """Group of every cell that has factors: cells without a count have none."""
    obs = fitted.adata.obs
    return obs.loc[obs[SPLIT_COLUMN] != "dropped", group_key]


def _mark(row: Mapping[Any, Any]) -> dict[str, Any]:
    side = "high" if row["sign"] > 0 else "low"
    marked = f"{row['group']} ({side})" if row["separation"] >= MARKED else "-"
    return {"marks": marked, "AUC": round(row["separation"], 3)}


def _found(fitted: Fitted, group_key: str | None) -> Section:
    found, genes = fitted.factors, [str(name) for name in fitted.train.var_names]
    sizes = (
        f"{len(found.columns)} factors of {fitted.train.n_vars} genes, fitted to "
        f"{len(fitted.train)} cells; {len(fitted.heldout)} cells were held out."
    )
    if len(found.columns) == 0:
        return Section("What the model found", f"{sizes} No factor reaches a gene.")
    n_top = 5 if len(found.columns) <= LARGEST_MAP else 2
    effects = found.loadings if found.effects is None else found.effects
    names = None if fitted.blocks is None else fitted.factor_names
    shown: dict[str, Any] = {"feature_names": genes, "factor_names": names, "n_top": n_top}
    figures = [
        Figure(
            loadings_heatmap(effects, found.inclusion, quantity="effect", **shown),
            "Decoded effect of each factor on its genes, in units of the noise of each gene; every "
            "column is scaled to its largest entry.",
        )
    ]
    if group_key is not None:
        groups = _groups(fitted, group_key).astype(str).tolist()
        figures.append(
            Figure(
                factor_activity(found.scores, groups, factor_names=names),
                f"Factor scores by {group_key}, standardised over cells.",
            )
        )
    marks = (
        f"the cell group that they separate best from all other cells (high or low score, AUC; "
        f"named from {MARKED} on), "
    )
    table = Table(
        factor_table(fitted, group_key),
        f"Factors, {marks if group_key else ''}the number of genes they reach, and the genes that "
        "rise and fall most with the score, by decoded effect.",
    )
    text = f"{sizes} The sign of a factor is arbitrary: read it with its genes."
    return Section("What the model found", text, figures, [table])


def _comparison(comparison: pd.DataFrame) -> Section:
    text = (
        "Log predictive density of the held-out cells, factors integrated out by importance "
        "sampling, in nats per cell: larger is better."
    )
    first = comparison["model"].iloc[0]
    caption = f"Difference: {first} minus the model of the row, paired over cells."
    comparison = comparison.iloc[:, :2] if len(comparison) == 1 else comparison.round(2)
    caption = "Held-out log predictive density" if len(comparison) == 1 else caption
    return Section("Does it predict new cells?", text, tables=[Table(comparison, caption)])


def _training(fitted: Fitted) -> Section:
    history = fitted.restarts.histories[fitted.restarts.best_index]
    caption = "Loss per cell (negative ELBO) in training and on held-out cells."
    text = "; ".join(
        f"seed {seed}: objective {objective:.2f} per cell"
        for seed, objective in zip(fitted.restarts.seeds, fitted.restarts.objectives, strict=True)
    )
    return Section("Training", text, [Figure(training_curve(history), caption)])


def _findings(
    fitted: Fitted, checked: Checked, comparison: pd.DataFrame, group_key: str | None
) -> list[Finding]:
    """What was found, whether it predicts better than the baseline, and the checks."""
    found = [Finding(_summary_of_factors(fitted, group_key))]
    found += [Finding(*_compared(row)) for row in comparison.iloc[1:].to_dict("records")]
    return found + check_findings(checked)


def _summary_of_factors(fitted: Fitted, group_key: str | None) -> str:
    n_factors = f"{len(fitted.factors.columns)} factors{_sizes_of_blocks(fitted)}"
    if group_key is None:
        return f"{n_factors} found."
    marked: dict[str, list[str]] = {}
    for name, mark in _marks(fitted, group_key).items():
        if mark["marks"] != "-":
            marked.setdefault(mark["marks"].rsplit(" (", 1)[0], []).append(name)
    named = "; ".join(f"{group} by {', '.join(names)}" for group, names in marked.items())
    return f"{n_factors} found; cell groups marked: {named or 'none'}."


def _sizes_of_blocks(fitted: Fitted) -> str:
    """How many factors are shared, and how many each study has of its own."""
    if fitted.blocks is None:
        return ""
    names = [SHARED_NAME, *(fitted.train.study_names or ())]
    return f" ({', '.join(f'{fitted.blocks.count(name)} {name}' for name in names)})"


def _compared(row: Mapping[Any, Any]) -> tuple[str, bool | None]:
    gap, error = row["difference"], row["standard error"]
    better = None if not abs(gap) > 2 * error else gap > 0
    word = {True: "better than", False: "worse than", None: "about as well as"}[better]
    return (
        f"Held-out cells are predicted {word} by {row['model']}: "
        f"{gap:+.2f} nats per cell (standard error {error:.2f}).",
        better,
    )
