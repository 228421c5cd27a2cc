"""What can be checked: a saved model with cells, or a file of replicates with data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from probinterp.criticism import PredictiveDraw, cap_rows
from probinterp.genomics import ExpressionData
from probinterp.genomics.files import read_h5ad
from probinterp.genomics.fitted_units import refuse_fitted_units
from probinterp.genomics.reference import load_reference
from probinterp.inference import load, predictive_draws, read_config
from probinterp.inference.data import as_batch
from probinterp.jobs.fitting import read_like, split_column
from probinterp.models import Batch, ProbabilisticModel

TREES = (".nc", ".zarr")
TABLES = (".csv", ".tsv", ".npy")


class Source(NamedTuple):
    """Draws that replicate held-out data, and what is known of both.

    Attributes
    ----------
    name
        What the model is called.
    draws, x
        Draws and the data to compare, (N, G).
    var_names
        Names of the features.
    columns
        Labels of the units by column, for discrepancies of groups.
    n_obs
        Number of units of the fit, if known.
    model, batch
        The model and the held-out data as it sees them, where there is a model; stored
        replicates have none and cannot score.
    """

    name: str
    draws: Iterable[PredictiveDraw]
    x: Tensor
    var_names: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    n_obs: int | None
    model: ProbabilisticModel | None = None
    batch: Batch | None = None

    @property
    def scores(self) -> bool:
        """Whether the draws have a likelihood."""
        return self.model is not None


def open_source(
    model: str | Path,
    data: str | Path | None,
    *,
    all_cells: bool = False,
    cap: bool = False,
    n_draws: int = 200,
    seed: int = 0,
) -> Source:
    """Open a saved model with an h5ad file, or an ArviZ file with data.

    Parameters
    ----------
    model
        Directory of a saved model, or a ``.nc`` or ``.zarr`` file with posterior predictive
        samples.
    data
        For a model: an h5ad file with cells. For an ArviZ file: held-out data as ``.npy``,
        ``.csv``, ``.tsv`` (a header names the variables) or ``.h5ad``; None where the file
        itself marks its ``observed_data`` as held out.
    all_cells
        Use all cells, not only those that an earlier fit marked as held out: for files that
        the fit has not seen.
    cap
        Use at most a tenth as many cells of an h5ad file as the fit had, chosen at random: p-values
        of point-estimated parameters are then nearly calibrated.
    n_draws
        Replicates of a model; an ArviZ file has as many as it has.
    seed
        Seed of the draws.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If something is missing or does not fit.
    """
    path = Path(model)
    if path.suffix in TREES:
        return _tree_source(path, None if data is None else Path(data))
    if data is None:
        raise ValueError(f"checking the model {path} needs a file of held-out cells, .h5ad.")
    fitted, reference = load(path), load_reference(path)
    adata = _held_out_part(read_h5ad(data), data, all_cells)
    heldout = read_like(adata, reference)
    refuse_fitted_units(heldout, path)
    n_obs = _fitted_cells(path)
    if cap:
        heldout = heldout.subset(cap_rows(len(heldout), n_obs, seed))
    source = cells_source(
        path.parent.name if path.name == "model" else path.name,
        fitted,
        heldout,
        n_obs=n_obs,
        n_draws=n_draws,
        seed=seed,
    )
    return source._replace(columns=_columns(adata.obs.loc[heldout.obs_names]))


def cells_source(
    name: str,
    model: ProbabilisticModel,
    heldout: ExpressionData,
    *,
    n_obs: int,
    n_draws: int,
    seed: int,
) -> Source:
    """Draws of a model for new cells like the held-out ones."""
    batch = as_batch(heldout)
    draws = predictive_draws(model, batch, n_draws, local="prior", seed=seed)
    genes = [str(gene) for gene in heldout.var_names]
    return Source(name, draws, batch.x, genes, {}, n_obs, model, batch)


def _held_out_part(adata: Any, path: str | Path, all_cells: bool) -> Any:
    if all_cells:
        return adata
    held = (split_column(adata, path) == "heldout").to_numpy()
    if not held.any():
        raise ValueError(f"{path} marks no cell as held out.")
    return adata[held].copy()


def _fitted_cells(directory: Path) -> int:
    try:
        return int(read_config(directory)["fit"]["settings"]["n_obs"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory} was saved without the settings of its fit; expected n_obs there."
        ) from error


def _tree_source(path: Path, data: Path | None) -> Source:
    from probinterp.reporting.arviz_draws import from_arviz  # ArviZ is slow to import

    if not path.exists():
        raise FileNotFoundError(f"{path} not found.")
    table = None if data is None else _read_table(data)
    found = from_arviz(path, None if table is None else table.to_numpy(dtype=np.float64))
    n_features = found.x.shape[1]
    named = table is not None and table.shape[1] == n_features
    names = [str(c) for c in table.columns] if named and table is not None else None
    return Source(
        path.stem,
        found.draws,
        found.x,
        names or [f"x{j}" for j in range(n_features)],
        {} if table is None else _columns(table.attrs.get("obs", pd.DataFrame())),
        getattr(found.draws, "n_obs", None),
    )


def _read_table(path: Path) -> pd.DataFrame:
    """Numbers of a table or an h5ad file, with the names of the variables."""
    if path.suffix == ".h5ad":
        adata = read_h5ad(path)
        frame = adata.to_df()
        frame.attrs["obs"] = adata.obs
        return frame
    if path.suffix not in TABLES:
        known = ", ".join([*TABLES, ".h5ad"])
        raise ValueError(f"held-out data must be a file of type {known}, got {path.name}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found.")
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False)
        if values.ndim == 0:
            raise ValueError(f"{path} holds a single number, not data of units.")
        return pd.DataFrame(values.reshape(len(values), -1))
    frame = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    words = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    numbers = frame.drop(columns=words)
    if numbers.empty:
        raise ValueError(f"{path} holds no column of numbers.")
    numbers.attrs["obs"] = frame[words]
    return numbers


def _columns(obs: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): obs[name].astype(str).tolist() for name in obs.columns}
