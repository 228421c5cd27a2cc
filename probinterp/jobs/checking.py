"""Check a saved model on cells that the fit has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import pandas as pd

from probinterp.criticism import CriticismWarning, Discrepancy, PopPCResult, discrepancies, pop_pc
from probinterp.genomics import ExpressionData
from probinterp.genomics.reference import load_reference
from probinterp.inference import load, predictive_draws, read_config
from probinterp.inference.data import as_batch
from probinterp.jobs.fitting import SPLIT_COLUMN, existing, read_like, write_json
from probinterp.models import ProbabilisticModel

CHECKS: Mapping[str, Discrepancy] = {
    "log predictive density": discrepancies.mean_negative_log_likelihood,
    "library size": discrepancies.library_size,
    "mean-variance trend": discrepancies.mean_variance_trend,
    "gene-gene residual correlation": discrepancies.residual_correlation,
    "gene variance": discrepancies.feature_variance,
    "gene zero fraction": discrepancies.zero_fraction,
}


class Checked(NamedTuple):
    """Results of the standard checks, by name, and the genes they refer to."""

    results: dict[str, PopPCResult]
    var_names: list[str]

    def table(self) -> pd.DataFrame:
        """One row a check: held-out value, effect size, two-sided p, genes that fail."""
        rows = []
        for name, result in self.results.items():
            overall = result.uniform.ndim == 0
            rows.append(
                {
                    "check": name,
                    "z": result.z.item() if overall else result.z.abs().median().item(),
                    "p": result.p_two_sided.item() if overall else result.p_adjusted.min().item(),
                    "misfit": (
                        ("yes" if result.p_two_sided.item() <= 0.05 else "no")
                        if overall
                        else f"{int((result.p_adjusted <= 0.05).sum())} of {result.z.numel()} genes"
                    ),
                }
            )
        return pd.DataFrame(rows)

    def genes(self) -> pd.DataFrame:
        """One row a gene: effect sizes and adjusted p-values of the checks per gene."""
        columns: dict[str, Any] = {}
        for name, result in self.results.items():
            if result.uniform.ndim == 1:
                columns[f"{name}: z"] = result.z.numpy()
                columns[f"{name}: adjusted p"] = result.p_adjusted.numpy()
        return pd.DataFrame(columns, index=pd.Index(self.var_names, name="gene"))


def check_cells(
    model: ProbabilisticModel,
    heldout: ExpressionData,
    *,
    n_obs: int,
    n_draws: int = 200,
    seed: int = 0,
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
        Replicates a check, S.
    seed
        Seed of the replicates.

    Returns
    -------
    Checked
        Results whose ``notes`` hold the reservations, so none is raised as a warning.
    """
    batch = as_batch(heldout)
    draws = predictive_draws(model, batch, n_draws, local="prior", seed=seed)
    results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CriticismWarning)  # kept in the notes of every result
        for name, discrepancy in CHECKS.items():
            results[name] = pop_pc(draws, batch.x, discrepancy, n_obs=n_obs, seed=seed)
    return Checked(results, list(heldout.var_names))


def check_file(
    directory: str | Path,
    path: str | Path,
    out: str | Path,
    *,
    all_cells: bool = False,
    n_draws: int = 200,
    seed: int = 0,
) -> tuple[Checked, dict[str, Any]]:
    """Check the model in ``directory`` on an h5ad file; write ``check.json`` and ``genes.csv``.

    Cells marked ``"train"`` by an earlier fit are left out unless ``all_cells`` is set, which is
    for files that the fit has not seen.
    """
    model, reference = load(directory), load_reference(directory)
    n_obs = read_config(directory)["fit"]["settings"]["n_obs"]
    heldout = read_heldout(path, reference, all_cells=all_cells)
    checked = check_cells(model, heldout, n_obs=n_obs, n_draws=n_draws, seed=seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {name: _short(result) for name, result in checked.results.items()}
    write_json(folder / "check.json", summary)
    checked.genes().to_csv(folder / "genes.csv")
    return checked, summary


def read_heldout(
    path: str | Path, reference: ExpressionData, *, all_cells: bool = False
) -> ExpressionData:
    """Held-out cells of an h5ad file, genes in the order of the model's."""
    adata = anndata.read_h5ad(existing(path))
    if not all_cells:
        if SPLIT_COLUMN not in adata.obs:
            raise KeyError(
                f"{path} has no column {SPLIT_COLUMN!r} that says which cells were held out; "
                "pass all cells only if the fit has seen none of them."
            )
        adata = adata[(adata.obs[SPLIT_COLUMN] == "heldout").to_numpy()].copy()
    return read_like(adata, reference)


def _short(result: PopPCResult) -> dict[str, Any]:
    """Summary of a result without its values per gene."""
    kept = result.summary()
    return {k: v for k, v in kept.items() if result.uniform.ndim == 0 or not isinstance(v, list)}
