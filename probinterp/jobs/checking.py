"""Checks of whatever a person hands over, and tables of what they found."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from probinterp.criticism import (
    CriticismWarning,
    Discrepancy,
    PopPCResult,
    PredictiveDraw,
    StackedReplicates,
    Verdict,
    discrepancies,
    pop_pc_suite,
)
from probinterp.criticism.wording import counted
from probinterp.genomics import ExpressionData
from probinterp.jobs.discrepancy_names import suite_of
from probinterp.jobs.fitting import output_folder, write_json
from probinterp.jobs.sources import Source, cells_source, open_source
from probinterp.models import ProbabilisticModel

LEVEL = 0.05  # of the two-sided tests, and false discovery rate over the values of a vector

CELL_CHECKS: Mapping[str, Discrepancy] = {
    "negative log likelihood": discrepancies.mean_negative_log_likelihood,
    "library size": discrepancies.library_size,
    "mean-variance trend": discrepancies.mean_variance_trend,
    "gene-gene residual correlation": discrepancies.residual_correlation,
    "gene variance": discrepancies.feature_variance,
    "gene zero fraction": discrepancies.zero_fraction,
}
STATISTICS: Mapping[str, Discrepancy] = {
    "mean": discrepancies.mean,
    "maximum": discrepancies.maximum,
    "upper quartile": discrepancies.quantile(0.75),
    "skewness": discrepancies.skewness,
    "variance of each variable": discrepancies.feature_variance,
}


class Checked(NamedTuple):
    """Results of checks by name, and the genes that those per feature refer to."""

    results: dict[str, PopPCResult]
    var_names: list[str]

    def table(self) -> pd.DataFrame:
        r"""One row a check: effect size z, two-sided p, misfit, and the values that differ most.

        For a check with several values z is the median of \|z\|, and p the smallest adjusted p or,
        where there are too few draws to judge each, that of all values together.
        """
        return pd.DataFrame([self._row(name) for name in self.results])

    def genes(self) -> pd.DataFrame:
        """One row a gene: effect sizes and adjusted p-values of the checks per gene."""
        columns: dict[str, Any] = {}
        for name, result in self.results.items():
            if self.labels(name) is self.var_names:
                columns[f"{name}: z"] = result.z.numpy()
                columns[f"{name}: adjusted p"] = result.p_adjusted.numpy()
        return pd.DataFrame(columns, index=pd.Index(self.var_names, name="gene"))

    def ranking(self, name: str, n_top: int = 10) -> pd.DataFrame:
        """Worst values of one check, with the replicated interval and adjusted p-values.

        ``misfit`` is "not judged" where there are too few draws to judge single values.
        """
        ranking = self.results[name].ranking(self.labels(name), alpha=LEVEL)
        verdict = self._verdict(name)
        frame = pd.DataFrame(ranking.rows(n_top)).rename(columns={"feature": "gene"})
        if verdict.joint or verdict.passed is None:
            frame["rejected"] = "not judged"
        names = {
            "replicated": "replicated mean",
            "low": "5 %",
            "high": "95 %",
            "p_adjusted": "adjusted p",
            "rejected": "misfit",
        }
        return frame.rename(columns=names)

    def verdicts(self) -> list[Verdict]:
        """Sentences on all checks, with names of genes, at a level of .05."""
        return [self._verdict(name) for name in self.results]

    def notes(self) -> list[str]:
        """Reservations, each once; those of some checks only begin with their names."""
        owners: dict[str, list[str]] = {}
        for name, result in self.results.items():
            for note in result.notes:
                owners.setdefault(note, []).append(name)
        general = [note for note, names in owners.items() if len(names) == len(self.results)]
        special = {note: names for note, names in owners.items() if note not in general}
        stems = [note.removesuffix(".") for note in general]
        kept = [
            note
            for note, stem in zip(general, stems, strict=True)
            if not any(other != stem and other.startswith(stem) for other in stems)
        ]
        return kept + [f"{', '.join(names)}: {note}" for note, names in special.items()]

    def labels(self, name: str) -> Sequence[str] | None:
        """Names of the values of a check: its own, the genes, or None."""
        result = self.results[name]
        if result.labels is not None or result.uniform.ndim == 0:
            return result.labels
        per_gene = result.axis in (None, "feature") and len(result.uniform) == len(self.var_names)
        return self.var_names if per_gene else None

    def _verdict(self, name: str) -> Verdict:
        labels = self.labels(name)
        noun = "gene" if labels is self.var_names else None
        return self.results[name].verdict(LEVEL, labels=labels, noun=noun)

    def _row(self, name: str) -> dict[str, Any]:
        result, verdict = self.results[name], self._verdict(name)
        if result.uniform.ndim == 0:
            misfit = {True: "no", False: "yes", None: "no verdict"}[verdict.passed]
            z, largest = verdict.effect, ""
        else:
            noun = "gene" if self.labels(name) is self.var_names else result.axis or "value"
            misfit = f"{verdict.n_rejected} of {counted(verdict.n_values, noun)}"
            if verdict.joint:
                together = {True: "no, all together", False: "yes, all together"}
                misfit = "no verdict" if verdict.passed is None else together[verdict.passed]
            elif verdict.passed is None:
                misfit += ", no verdict"
            z = result.z.abs().median().item()
            pairs = zip(verdict.worst, result.ranking(self.labels(name)).z.tolist(), strict=False)
            largest = ", ".join(f"{label} {value:+.1f}" for label, value in pairs)
        return {
            "check": name,
            "z": z,
            "p": verdict.p_value,
            "misfit": misfit,
            "largest": largest,
        }


def check_n_draws(n_draws: int) -> None:
    """Refuse fewer than two replicates: effect sizes need their spread."""
    if n_draws < 2:
        raise ValueError(f"n_draws must be at least 2, got {n_draws}.")


def default_suite(source: Source) -> Mapping[str, Discrepancy]:
    """Checks of cells for a model of cells, statistics alone for stored replicates."""
    return CELL_CHECKS if source.scores else STATISTICS


def check_source(
    source: Source,
    suite: Mapping[str, Discrepancy] | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Checked:
    """Run predictive checks, all on the same replicates.

    Parameters
    ----------
    source
        Draws and the data to compare with them.
    suite
        Discrepancies by name; default :func:`default_suite`.
    seed
        Seed of the replicates.
    progress
        Show a progress bar.

    Returns
    -------
    Checked
        Results whose ``notes`` hold the reservations, so none is raised as a warning.
    """
    stacked = isinstance(source.draws, StackedReplicates)  # no waiting, nothing to show
    draws = source.draws if stacked else _Shown(source.draws, progress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CriticismWarning)  # kept in the notes of every result
        results = pop_pc_suite(
            draws, source.x, suite or default_suite(source), n_obs=source.n_obs, seed=seed
        )
    return Checked(results, list(source.var_names))


def check_cells(
    model: ProbabilisticModel,
    heldout: ExpressionData,
    *,
    n_obs: int,
    n_draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Checked:
    """Run the standard checks of a model on cells that the fit has not seen.

    Parameters
    ----------
    model
        Fitted model of counts or values.
    heldout
        Cells that the fit has not seen.
    n_obs
        Number of cells of the fit; a model with point-estimated globals is judged by it.
    n_draws
        Replicates, S, at least 2.
    seed, progress
        As for :func:`check_source`.
    """
    check_n_draws(n_draws)
    source = cells_source("model", model, heldout, n_obs=n_obs, n_draws=n_draws, seed=seed)
    return check_source(source, seed=seed, progress=progress)


def check_file(
    model: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    checks: Sequence[str] = (),
    all_cells: bool = False,
    cap: bool = False,
    n_draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Checked, dict[str, Any]]:
    """Check a saved model or stored replicates on held-out data.

    Writes ``check.json``, ``report.html`` and, where checks have a value per gene or variable,
    ``genes.csv`` into ``out``.

    Parameters
    ----------
    model, data, all_cells, cap, n_draws
        As for :func:`probinterp.jobs.sources.open_source`.
    out
        Directory to write to.
    checks
        Discrepancies, as for :func:`probinterp.jobs.discrepancy_names.find_discrepancy`; default
        :func:`default_suite`.
    seed, progress
        As for :func:`check_source`.

    Returns
    -------
    tuple
        Results, and the summary that was written.
    """
    check_n_draws(n_draws)
    source = open_source(model, data, all_cells=all_cells, cap=cap, n_draws=n_draws, seed=seed)
    suite = suite_of(checks, source.columns)
    folder = output_folder(out)
    checked = check_source(source, suite or None, seed=seed, progress=progress)
    from probinterp.jobs.check_pages import write_check_page  # matplotlib is slow to import

    summary = {name: _short(result) for name, result in checked.results.items()}
    checked.genes().to_csv(folder / "genes.csv")
    write_check_page(folder / "report.html", source, checked, seed=seed)
    return checked, write_json(folder / "check.json", summary)


class _Shown:
    """Draws with a progress bar; everything else is passed on."""

    def __init__(self, draws: Iterable[PredictiveDraw], progress: bool) -> None:
        self._draws, self._progress = draws, progress

    def __iter__(self) -> Iterator[PredictiveDraw]:
        return iter(tqdm(self._draws, desc="checks", disable=not self._progress, leave=False))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draws, name)


def _short(result: PopPCResult) -> dict[str, Any]:
    """Summary of a result without its values per gene."""
    kept = result.summary()
    return {k: v for k, v in kept.items() if result.uniform.ndim == 0 or not isinstance(v, list)}
