"""Check a saved model on cells that the fit has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from probinterp.criticism import CriticismWarning, Discrepancy, PopPCResult, discrepancies, pop_pc
from probinterp.genomics import ExpressionData
from probinterp.genomics.reference import load_reference
from probinterp.inference import load, predictive_draws, read_config
from probinterp.inference.data import as_batch
from probinterp.jobs.fitting import (
    output_folder,
    read_h5ad,
    read_like,
    split_column,
    write_json,
)
from probinterp.models import ProbabilisticModel

LEVEL = 0.05  # of the two-sided tests, and false discovery rate over genes
N_NAMED = 3  # genes that a sentence names

CHECKS: Mapping[str, Discrepancy] = {
    "negative log likelihood": discrepancies.mean_negative_log_likelihood,
    "library size": discrepancies.library_size,
    "mean-variance trend": discrepancies.mean_variance_trend,
    "gene-gene residual correlation": discrepancies.residual_correlation,
    "gene variance": discrepancies.feature_variance,
    "gene zero fraction": discrepancies.zero_fraction,
}


class CheckVerdict(NamedTuple):
    """One sentence on a check, and whether the model passed; None where that is open."""

    statement: str
    passed: bool | None


class Checked(NamedTuple):
    """Results of the standard checks, by name, and the genes they refer to."""

    results: dict[str, PopPCResult]
    var_names: list[str]

    def table(self) -> pd.DataFrame:
        r"""One row a check: effect size z, two-sided p, misfit, and the genes that differ most.

        For checks per gene z is the median of \|z\| and p the smallest adjusted p.
        """
        return pd.DataFrame([self._row(name) for name in self.results])

    def genes(self) -> pd.DataFrame:
        """One row a gene: effect sizes and adjusted p-values of the checks per gene."""
        columns: dict[str, Any] = {}
        for name, result in self.results.items():
            if result.uniform.ndim == 1:
                columns[f"{name}: z"] = result.z.numpy()
                columns[f"{name}: adjusted p"] = result.p_adjusted.numpy()
        return pd.DataFrame(columns, index=pd.Index(self.var_names, name="gene"))

    def verdicts(self) -> list[CheckVerdict]:
        """Sentences on all checks, with names of genes, at a level of .05.

        A check that finds nothing is passed only if it had enough draws to find something.
        """
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

    def _row(self, name: str) -> dict[str, Any]:
        result, verdict = self.results[name], self._verdict(name)
        row = {"check": name}
        if result.uniform.ndim == 0:
            misfit = {True: "no", False: "yes", None: "too few draws"}[verdict.passed]
            return row | {
                "z": result.z.item(),
                "p": result.p_two_sided.item(),
                "misfit": misfit,
                "largest": "",
            }
        n_failing = int((result.p_adjusted <= LEVEL).sum())
        few = "" if n_failing or _conclusive(result) else ", too few draws"
        return row | {
            "z": result.z.abs().median().item(),
            "p": result.p_adjusted.min().item(),
            "misfit": f"{n_failing} of {result.z.numel()} genes{few}",
            "largest": self._largest(result),
        }

    def _largest(self, result: PopPCResult) -> str:
        z = result.z.numpy()
        size = np.where(np.isfinite(z), np.abs(z), -1.0)  # infinite where replicates do not vary
        order = np.argsort(-size, kind="stable")[:N_NAMED]
        return ", ".join(f"{self.var_names[i]} {z[i]:+.1f}" for i in order if size[i] > 0)

    def _verdict(self, name: str) -> CheckVerdict:
        result = self.results[name]
        n_draws = result.n_draws
        if result.uniform.ndim == 0:
            p, z = result.p_two_sided.item(), result.z.item()
            value = result.heldout.double().mean().item()
            where = f"the held-out value {value:.4g} lies {abs(z):.2g} sd "
            where += (
                f"{'above' if z >= 0 else 'below'} the mean of {n_draws} replicates, p = {p:.2g}"
            )
            if 2 / (n_draws + 1) > LEVEL:
                return CheckVerdict(f"{name}: no verdict, too few draws; {where}.", None)
            found = "misfit" if p <= LEVEL else "no misfit"
            return CheckVerdict(f"{name}: {found}; {where}.", p > LEVEL)
        n_failing = int((result.p_adjusted <= LEVEL).sum())
        largest = self._largest(result)
        most = f"; largest effects in sd: {largest}" if largest else ""
        counted = f"of {result.z.numel()} genes at a false discovery rate of {LEVEL:g}"
        if n_failing:
            return CheckVerdict(f"{name}: misfit in {n_failing} {counted}{most}.", False)
        if _conclusive(result):
            return CheckVerdict(f"{name}: misfit in none {counted}{most}.", True)
        text = f"{name}: no verdict, {n_draws} draws are too few to reject single genes"
        return CheckVerdict(text + most + ".", None)


def _conclusive(result: PopPCResult) -> bool:
    """Whether a single value at the smallest p-value would be rejected."""
    return result.z.numel() * 2 / (result.n_draws + 1) <= LEVEL


def check_n_draws(n_draws: int) -> None:
    """Refuse fewer than two replicates: effect sizes need their spread."""
    if n_draws < 2:
        raise ValueError(f"n_draws must be at least 2, got {n_draws}.")


def check_cells(
    model: ProbabilisticModel,
    heldout: ExpressionData,
    *,
    n_obs: int,
    n_draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Checked:
    """Run the standard held-out predictive checks.

    Parameters
    ----------
    model
        Fitted model of counts or values.
    heldout
        Cells that the fit has not seen.
    n_obs
        Number of cells of the fit; a model with point-estimated globals is judged by it.
    n_draws
        Replicates a check, S, at least 2.
    seed
        Seed of the replicates.
    progress
        Show a progress bar.

    Returns
    -------
    Checked
        Results whose ``notes`` hold the reservations, so none is raised as a warning.
    """
    check_n_draws(n_draws)
    batch = as_batch(heldout)
    draws = predictive_draws(model, batch, n_draws, local="prior", seed=seed)
    results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CriticismWarning)  # kept in the notes of every result
        for name in tqdm(CHECKS, desc="checks", disable=not progress, leave=False):
            results[name] = pop_pc(draws, batch.x, CHECKS[name], n_obs=n_obs, seed=seed)
    return Checked(results, list(heldout.var_names))


def check_file(
    directory: str | Path,
    path: str | Path,
    out: str | Path,
    *,
    all_cells: bool = False,
    n_draws: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Checked, dict[str, Any]]:
    """Check the model in ``directory`` on an h5ad file; write ``check.json`` and ``genes.csv``.

    Cells marked ``"train"`` by an earlier fit are left out unless ``all_cells`` is set, which is
    for files that the fit has not seen.
    """
    check_n_draws(n_draws)
    model, reference = load(directory), load_reference(directory)
    n_obs = _fitted_cells(directory)
    heldout = read_heldout(path, reference, all_cells=all_cells)
    folder = output_folder(out)
    checked = check_cells(
        model, heldout, n_obs=n_obs, n_draws=n_draws, seed=seed, progress=progress
    )
    summary = {name: _short(result) for name, result in checked.results.items()}
    checked.genes().to_csv(folder / "genes.csv")
    return checked, write_json(folder / "check.json", summary)


def read_heldout(
    path: str | Path, reference: ExpressionData, *, all_cells: bool = False
) -> ExpressionData:
    """Held-out cells of an h5ad file, genes in the order of the model's."""
    adata = read_h5ad(path)
    if not all_cells:
        held = (split_column(adata, path) == "heldout").to_numpy()
        if not held.any():
            raise ValueError(f"{path} marks no cell as held out.")
        adata = adata[held].copy()
    return read_like(adata, reference)


def _fitted_cells(directory: str | Path) -> int:
    try:
        return int(read_config(directory)["fit"]["settings"]["n_obs"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory} was saved without the settings of its fit; expected n_obs there."
        ) from error


def _short(result: PopPCResult) -> dict[str, Any]:
    """Summary of a result without its values per gene."""
    kept = result.summary()
    return {k: v for k, v in kept.items() if result.uniform.ndim == 0 or not isinstance(v, list)}
