"""Checks as sections of a report, and as a report of their own."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import probinterp
from probinterp.criticism import PopPCResult, ScoreComparison
from probinterp.jobs.checking import Checked
from probinterp.jobs.sources import Source
from probinterp.reporting import (
    Figure,
    Finding,
    Section,
    Table,
    pop_pc_distribution,
    pop_pc_features,
    pop_pc_intervals,
    write_report,
)

FEW_VALUES = 30  # up to which a vector is drawn with its replicated intervals


def check_findings(checked: Checked) -> list[Finding]:
    """Verdicts as sentences at the head of a report."""
    return [Finding(str(v), v.passed) for v in checked.verdicts()]


def checks_section(name: str, checked: Checked) -> Section:
    """Figures of all checks, a table of them, and the worst values of those with several."""
    figures = [
        Figure(_axes(result, checked, check), f"{name}: {check}.")
        for check, result in checked.results.items()
    ]
    text = (
        "Each check computes one number, or several, from the held-out data and from data sets "
        "that the model makes up. z says how far the two lie apart, in standard deviations over "
        "the made-up data sets.\n\n"
    ) + "\n\n".join(checked.notes())
    caption = (
        "For checks with several values: median |z|, smallest adjusted p, and the values with the "
        "largest z."
    )
    tables = [Table(checked.table(), caption)]
    for check, result in checked.results.items():
        if result.uniform.ndim == 1:
            together = _together(result)
            tables.append(Table(checked.ranking(check), f"{check}: the worst values{together}."))
    return Section(f"Predictive checks: {name}", text, figures, tables)


def versions() -> dict[str, str]:
    """What a report says of the software that made it."""
    return {
        "probinterp": probinterp.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def write_check_page(path: Path, source: Source, checked: Checked, *, seed: int) -> Path:
    """Report of the checks of one model."""
    return write_report(
        path,
        title=f"Checks of {source.name}",
        sections=[checks_section(source.name, checked)],
        findings=check_findings(checked),
        settings=_settings(source, checked, seed) | versions(),
    )


def write_comparison_page(
    path: Path,
    comparison: ScoreComparison,
    tables: Mapping[str, Table],
    checked: Mapping[str, Checked],
    settings: Mapping[str, Any],
) -> Path:
    """Report of several models side by side."""
    side_by_side = Section(
        "The models side by side",
        "The score is that of the held-out data, averaged over units; differences are paired. The "
        "checks are in standard deviations of the replicates: far from 0 is misfit.",
        tables=list(tables.values()),
    )
    sections = [side_by_side, *(checks_section(name, found) for name, found in checked.items())]
    findings = [Finding(comparison.statement)]
    for name, found in checked.items():
        failed = [v.discrepancy for v in found.verdicts() if v.passed is False]
        said = f"fails {', '.join(failed)}" if failed else "fails no check"
        findings.append(Finding(f"{name} {said}.", not failed))
    return write_report(
        path,
        title=f"Comparison of {len(checked)} models",
        sections=sections,
        findings=findings,
        settings=dict(settings) | versions(),
    )


def _axes(result: PopPCResult, checked: Checked, check: str) -> Any:
    if result.uniform.ndim == 0:
        return pop_pc_distribution(result)
    names = checked.labels(check)
    finite = bool(torch.isfinite(result.replicated).all() and torch.isfinite(result.heldout).all())
    if result.uniform.numel() <= FEW_VALUES and finite:
        return pop_pc_intervals(result, feature_names=names)
    return pop_pc_features(result, feature_names=names)


def _together(result: PopPCResult) -> str:
    """All values as one test, where the kind of the check allows it."""
    if result.kind == "realised":
        return ""
    return f" (all values together: p = {np.format_float_positional(result.aggregate(), 2)})"


def _settings(source: Source, checked: Checked, seed: int) -> dict[str, Any]:
    first = next(iter(checked.results.values()))
    return {
        "held-out units": first.n_new,
        "units of the fit": "unknown" if source.n_obs is None else source.n_obs,
        "replicates": first.n_draws,
        "kind": first.kind,
        "local latents": first.local or "not said",
        "seed": seed,
    }
