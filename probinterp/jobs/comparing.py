"""Several models on the same held-out data: scores, and checks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from probinterp.criticism import Score, ScoreComparison, compare_scores, crps, log_score
from probinterp.inference import predictive_draws
from probinterp.jobs.checking import (
    CELL_CHECKS,
    STATISTICS,
    Checked,
    check_n_draws,
    check_source,
)
from probinterp.jobs.discrepancy_names import suite_of
from probinterp.jobs.fitting import output_folder, write_json
from probinterp.jobs.sources import Source, open_source

SCORES = ("log", "crps")
N_SAMPLES = 100  # importance samples of a model's local latents in its log score
N_GLOBALS = 20  # draws of its global unknowns there, where they have a posterior


class Comparison(NamedTuple):
    """What :func:`compare_files` found.

    Attributes
    ----------
    scores
        Models in order of their held-out score.
    checked
        Checks by the name of the model, in the order of the scores.
    """

    scores: ScoreComparison
    checked: dict[str, Checked]

    def score_table(self) -> pd.DataFrame:
        """One row a model, the best first: score, and the paired difference to the best."""
        rows = [
            {
                "model": row.name,
                self.scores.score: row.mean,
                "standard error": row.standard_error,
                "difference to the best": row.difference,
                "its standard error": row.difference_error,
            }
            for row in self.scores.rows
        ]
        return pd.DataFrame(rows)

    def check_table(self) -> pd.DataFrame:
        """One row a check, one column a model: z, with a star where the check fails.

        Of checks with several values the median size of z, which has no sign.
        """
        rows: dict[str, dict[str, str]] = {}
        for model, checked in self.checked.items():
            for row, verdict in zip(
                checked.table().to_dict("records"), checked.verdicts(), strict=True
            ):
                star = {True: "", False: " *", None: " ?"}[verdict.passed]
                z = f"{row['z']:+.2f}" if verdict.n_values == 1 else f"{row['z']:.2f}"
                rows.setdefault(row["check"], {})[model] = z + star
        frame = pd.DataFrame(rows).T.rename_axis("check").reset_index()
        return frame[["check", *self.checked]]


def compare_files(
    models: Sequence[str | Path],
    data: str | Path | None,
    out: str | Path,
    *,
    score: str | None = None,
    checks: Sequence[str] = (),
    all_cells: bool = False,
    n_draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Comparison, dict[str, Any]]:
    """Rank models by a held-out score and check all of them on the same data.

    Writes ``compare.json`` and ``report.html`` into ``out``. The comparison is fair only if no
    model has been fitted to any of the units: fit all of them to the same split.

    Parameters
    ----------
    models
        At least two saved models or ArviZ files, as for
        :func:`probinterp.jobs.sources.open_source`.
    data, all_cells, n_draws
        As there, the same for all models.
    out
        Directory to write to.
    score
        ``"log"``: log predictive density, local latents integrated out. ``"crps"``: continuous
        ranked probability score of every variable, which needs replicates alone. Default: the
        first where every model has a density.
    checks
        Discrepancies as text; default: those that suit every model.
    seed, progress
        As for :func:`probinterp.jobs.checking.check_source`.

    Returns
    -------
    tuple
        Comparison, and the summary that was written.

    Raises
    ------
    ValueError
        If there are fewer than two models, their data differ, or a log score is asked for of
        stored replicates.
    """
    check_n_draws(n_draws)
    if len(models) < 2:
        raise ValueError(f"a comparison needs at least two models, got {len(models)}.")
    options: dict[str, Any] = {"all_cells": all_cells, "n_draws": n_draws, "seed": seed}
    sources = _named([open_source(model, data, **options) for model in models])
    _require_same_data(sources)
    chosen = _choose_score(score, sources)
    folder = output_folder(out)
    scores = compare_scores({name: _score(s, chosen, seed) for name, s in sources.items()})
    first = next(iter(sources.values()))
    default = CELL_CHECKS if all(s.scores for s in sources.values()) else STATISTICS
    suite = suite_of(checks, first.columns) or default
    checked = {
        row.name: check_source(sources[row.name], suite, seed=seed, progress=progress)
        for row in scores.rows
    }
    found = Comparison(scores, checked)
    _write_page(folder / "report.html", found, {"data": str(data), "score": chosen} | options)
    summary = {
        "score": scores.score,
        "statement": scores.statement,
        "models": found.score_table().to_dict("records"),
        "checks": {n: c.table().to_dict("records") for n, c in checked.items()},
    }
    return found, write_json(folder / "compare.json", summary)


def _named(sources: Sequence[Source]) -> dict[str, Source]:
    """Sources by name; equal names are numbered."""
    names = [source.name for source in sources]
    unique = [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
    return {n: source._replace(name=n) for n, source in zip(unique, sources, strict=True)}


def _require_same_data(sources: Mapping[str, Source]) -> None:
    shapes = {name: tuple(source.x.shape) for name, source in sources.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the models must be compared on the same data, got shapes {shapes}.")
    first = next(iter(sources.values()))
    for name, source in sources.items():
        same_names = list(source.var_names) == list(first.var_names)
        if not same_names or not torch.allclose(source.x.double(), first.x.double()):
            raise ValueError(f"{name} reads other data than {first.name}: units or variables.")


def _choose_score(score: str | None, sources: Mapping[str, Source]) -> str:
    if score is not None and score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}.")
    without = [name for name, source in sources.items() if not source.scores]
    if score == "log" and without:
        raise ValueError(
            f"{', '.join(without)}: stored replicates have no density; use the score crps."
        )
    return score or ("crps" if without else "log")


def _score(source: Source, score: str, seed: int) -> Score:
    if score == "crps" or source.model is None or source.batch is None:
        return crps(source.draws, source.x, seed=seed)
    options: dict[str, Any] = {"scoring": "marginal", "n_samples": N_SAMPLES, "seed": seed}
    draws = predictive_draws(source.model, source.batch, N_GLOBALS, **options)
    if draws.point_estimate:
        draws = predictive_draws(source.model, source.batch, 1, **options)
    return log_score(draws, source.x)


def _write_page(path: Path, found: Comparison, settings: Mapping[str, Any]) -> None:
    from probinterp.jobs.check_pages import write_comparison_page  # matplotlib is slow to import
    from probinterp.reporting import Table

    larger = "larger is better" if found.scores.score == "log score" else "smaller is better"
    errors = {
        "difference to the best": "+.3g",
        "standard error": ".2g",
        "its standard error": ".2g",
    }
    frame = found.score_table()
    frame.loc[0, ["difference to the best", "its standard error"]] = float("nan")  # to itself
    tables = {
        "scores": Table(frame, f"Held-out {found.scores.score}: {larger}.", errors),
        "checks": Table(
            found.check_table(),
            "Effect sizes z; * misfit at a level of .05, ? no verdict. For checks with several "
            "values: the median |z|, and misfit of any value at a false discovery rate of .05, "
            "or of all together where the draws are too few to judge each.",
        ),
    }
    write_comparison_page(path, found.scores, tables, found.checked, settings)
