"""Checks as sections of a report, and as a report of their own."""

from __future__ import annotations

import math
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
    refit_calibration,
    score_differences,
    write_report,
)

FEW_VALUES = 30  # up to which a vector is drawn with its replicated intervals
MANY_SIZES = 5.0  # ratio of spreads from which values are drawn in their own units
P_FORMAT = ".2g"


def check_findings(checked: Checked) -> list[Finding]:
    """Verdicts as sentences at the head of a report."""
    return [Finding(str(v), v.passed) for v in checked.verdicts()]


def checks_section(name: str, checked: Checked) -> Section:
    """A table of all checks, a figure of each, and the worst values of those with several."""
    figures = [
        Figure(_axes(result, checked, check), str(verdict))
        for (check, result), verdict in zip(
            checked.results.items(), checked.verdicts(), strict=True
        )
    ]
    text = (
        "Each check computes one number, or several, from the held-out data and from data sets "
        "that the model makes up. z says how far the two lie apart, in standard deviations over "
        "the made-up data sets.\n\n"
    ) + "\n\n".join(checked.notes())
    tables = [
        _ranking_table(check, result, checked)
        for check, result in checked.results.items()
        if result.uniform.ndim == 1
    ]
    return Section(f"Predictive checks: {name}", text, figures, tables, _overview(checked))


def _overview(checked: Checked) -> Table:
    """All checks; the median of sizes has a column of its own, since it has no sign."""
    frame, results = checked.table(), list(checked.results.values())
    several = np.array([result.uniform.ndim == 1 for result in results])
    formats, caption = {"z": "+.2f", "p": P_FORMAT}, "Overview; p is two-sided."
    if not several.any():
        return Table(frame.drop(columns="largest"), caption, formats)
    frame.insert(2, "median |z|", frame["z"].where(several))
    frame["z"] = frame["z"].mask(several)
    frame.insert(4, "joint p", [_joint_p(result) for result in results])
    caption += (
        " Checks with several values have the median |z|, one p-value of all values together "
        "(joint p, by their ranks), and the values with the largest z; their p is the smallest "
        "adjusted one, or the joint p where there are too few draws to judge each."
    )
    formats |= {"median |z|": ".2f", "joint p": P_FORMAT}
    empty = [name for name in ("z", "joint p") if frame[name].isna().all()]
    kept = {name: form for name, form in formats.items() if name not in empty}
    return Table(frame.drop(columns=empty), caption, kept)


def _joint_p(result: PopPCResult) -> float:
    """One p-value of all values, NaN where draws do not decide or the kind does not allow it."""
    if result.uniform.ndim == 0 or result.kind == "realised" or result.decided_by != "draws":
        return math.nan
    return result.aggregate("ranks")


def _ranking_table(check: str, result: PopPCResult, checked: Checked) -> Table:
    frame = checked.ranking(check).rename(columns={"heldout": "held-out"})
    formats = {"z": "+.2f", "p": P_FORMAT, "adjusted p": P_FORMAT}
    count = min(len(frame), result.uniform.numel())
    shown = "all" if count == result.uniform.numel() else f"the {count} largest |z| of"
    caption = f"{check}: {shown} {result.uniform.numel()} values, with two-sided p."
    return Table(frame, caption, formats)


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
        "checks are in standard deviations of the replicates: far from 0 is misfit.\n\n"
        "Both are fair only if no model has been fitted to any of these units, which the files do "
        "not say of each other: models must share their split.",
        figures=_score_figures(comparison),
        tables=list(tables.values()),
    )
    sections = [side_by_side, *(checks_section(name, found) for name, found in checked.items())]
    findings = [Finding(comparison.statement)]
    findings += [_finding(name, found) for name, found in checked.items()]
    return write_report(
        path,
        title=f"Comparison of {len(checked)} models",
        sections=sections,
        findings=findings,
        settings=dict(settings) | versions(),
    )


def _score_figures(comparison: ScoreComparison) -> list[Figure]:
    """Paired differences; none where a score is infinite, which the table shows."""
    gaps = [value for row in comparison.rows for value in (row.difference, row.difference_error)]
    if not np.isfinite(gaps).all():
        return []
    caption = (
        "Difference of each model's score to the best, paired over units, with bars of 1 and 2 "
        "standard errors."
    )
    return [Figure(score_differences(comparison), caption)]


def _finding(name: str, checked: Checked) -> Finding:
    """Which checks a model fails, passes, and which say nothing."""
    by_outcome: dict[bool | None, list[str]] = {}
    for check, verdict in zip(checked.results, checked.verdicts(), strict=True):
        by_outcome.setdefault(verdict.passed, []).append(check)
    failed, silent = by_outcome.get(False, []), by_outcome.get(None, [])
    n_checks = len(checked.results)
    said = f"fails {len(failed)} of {n_checks} checks" if failed else "fails no check"
    said += f" ({', '.join(failed)})" if failed else ""
    said += f"; no verdict on {', '.join(silent)}" if silent else ""
    outcome = False if failed else None if silent else True
    return Finding(f"{name} {said}.", outcome)


def _axes(result: PopPCResult, checked: Checked, check: str) -> Any:
    if result.uniform.ndim == 0:
        return pop_pc_distribution(result) if result.refitted is None else refit_calibration(result)
    names = checked.labels(check)
    finite = bool(torch.isfinite(result.replicated).all() and torch.isfinite(result.z).all())
    if result.uniform.numel() <= FEW_VALUES and finite:
        options: dict[str, Any] = {"feature_names": names, "n_top": FEW_VALUES}
        return pop_pc_intervals(result, standardised=_of_many_sizes(result), **options)
    noun = "gene" if names is checked.var_names else None
    return pop_pc_features(result, feature_names=names, noun=noun)


def _of_many_sizes(result: PopPCResult) -> bool:
    """Whether one axis would hide the replicates of some values."""
    spread = result.replicated.double().std(0)
    return bool(spread.max() > MANY_SIZES * spread.min())


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
