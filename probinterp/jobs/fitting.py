"""Fit a sparse VAE to the cells of a file, of one study or several, and write what it found."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from probinterp.genomics import ExpressionData, from_anndata, split, top_genes, write_factors
from probinterp.genomics.files import read_h5ad
from probinterp.genomics.reference import load_reference, save_reference
from probinterp.inference import (
    EarlyStopping,
    Factors,
    Restarts,
    cosine,
    effective_factors,
    factors,
    fit_restarts,
    load,
    log_predictive_density,
    read_history,
    save,
)
from probinterp.inference.posterior import SHARED_NAME
from probinterp.inference.storage import write_atomically
from probinterp.jobs.cell_models import cell_model
from probinterp.models import ProbabilisticModel

SPLIT_COLUMN = "probinterp_split"
KEY, KEY_OF_STUDIES = "sparse_vae", "multistudy_sparse_vae"


class Fitted(NamedTuple):
    """A fitted model with the data of the fit.

    Attributes
    ----------
    model, restarts
        Best model and all of them.
    train, heldout
        Cells of the fit and held-out cells.
    factors
        Factors of all cells of the file that have counts, in the order of the file.
    adata
        The AnnData object with factors written to it.
    """

    model: ProbabilisticModel
    restarts: Restarts
    train: ExpressionData
    heldout: ExpressionData
    factors: Factors
    adata: AnnData

    @property
    def factor_names(self) -> list[str]:
        """Names of the factors, by study where there are studies."""
        return self.factors.named(self.train.study_names)

    @property
    def blocks(self) -> list[str] | None:
        """``shared`` or the study of each factor; None for a model of one study."""
        return self.factors.block_names(self.train.study_names)


def fit_cells(
    adata: AnnData,
    *,
    layer: str | None = None,
    counts: bool = True,
    size_factor_key: str | None = None,
    study_key: str | None = None,
    batch_key: str | None = None,
    stratify: str | None = None,
    groups: str | None = None,
    heldout: float = 0.2,
    n_factors: int = 10,
    n_shared: int | None = None,
    n_specific: int | None = None,
    n_hidden: int = 32,
    spike: float | None = None,
    slab: float | None = None,
    max_epochs: int = 150,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    restarts: int = 1,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Fitted:
    """Hold cells out, fit a sparse VAE to the others, and write its factors into ``adata``.

    Parameters
    ----------
    adata
        Cells by genes; written to in place.
    layer, counts, size_factor_key
        Passed to :func:`probinterp.genomics.from_anndata`; counts get a negative binomial
        likelihood, other values a Gaussian one.
    study_key
        ``obs`` column of the study of each cell: fits the multi-study sparse VAE.
    batch_key
        ``obs`` column of technical batches whose shifts are taken out, with ``study_key`` only.
    stratify, groups, heldout
        Passed to :func:`probinterp.genomics.split`. With ``study_key`` the split is stratified by
        study, unless ``stratify`` says otherwise.
    n_shared, n_specific
        Columns that all studies have, by default ``n_factors``, and columns of each study, by
        default 3. More than there are factors: what is not needed ends up empty.
    n_factors, n_hidden, spike, slab
        Passed to :class:`probinterp.models.SparseVAE`, or to
        :class:`probinterp.models.MultiStudySparseVAE`. The default rates of counts are N and
        0.01 N for N cells: a count says far less about a link than a Gaussian value does, and
        with the model's own defaults most links are lost.
    max_epochs, batch_size, learning_rate, device, progress
        Passed to :func:`probinterp.fit`, with Adam, a cosine schedule and early stopping on the
        held-out loss.
    restarts
        Number of fits, from ``seed`` on; the one with the best objective is kept.
    seed
        Seed of the split and of the first fit.

    Raises
    ------
    ValueError
        If ``study_key`` names one study only, or options of several studies come without it.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}.")
    _check_options_of_studies(study_key, batch_key, n_shared, n_specific)
    if SPLIT_COLUMN in adata.obs:
        adata.obs = adata.obs.drop(columns=SPLIT_COLUMN)
    strata = study_key if stratify is None else stratify
    parts = split(adata, heldout, stratify=strata, groups=groups, seed=seed)
    read = partial(
        from_anndata,
        layer=layer,
        counts=counts,
        size_factor_key=size_factor_key,
        study_key=study_key,
        batch_key=batch_key,
    )
    train = read(parts.train, drop_empty=True)
    held = read(parts.heldout, like=train, drop_empty=True)
    make_model = cell_model(train, n_factors, n_shared, n_specific, n_hidden, spike, slab)
    result = fit_restarts(
        make_model,
        train,
        seeds=range(seed, seed + restarts),
        max_epochs=max_epochs,
        batch_size=batch_size,
        optimizer=partial(torch.optim.Adam, lr=learning_rate),
        schedule=cosine,
        heldout=held,
        early_stopping=EarlyStopping(patience=5, every=5),
        device=device,
        progress=progress,
    )
    if not result.histories[result.best_index].records:
        raise KeyboardInterrupt  # stopped before the first epoch: nothing was learned
    everyone = read(adata, like=train, drop_empty=True)
    found = factors(result.best, everyone)
    _mark_split(adata, train, held)
    settings = {"seed": seed} | make_model.settings()
    key = KEY if study_key is None else KEY_OF_STUDIES
    write_factors(adata, found, key=key, data=everyone, params=settings, overwrite=True)
    return Fitted(result.best, result, train, held, found, adata)


def fit_file(path: str | Path, out: str | Path, **options: Any) -> dict[str, Any]:
    """Fit an h5ad file; write ``model/``, ``adata.h5ad`` and ``summary.json`` into ``out``.

    Returns
    -------
    dict
        The summary, plain numbers and strings.
    """
    adata, folder = read_h5ad(path), output_folder(out)
    return write_fit(fit_cells(adata, **options), folder)


def write_fit(fitted: Fitted, out: Path) -> dict[str, Any]:
    """Write a fitted model, its data and a summary into the directory ``out``."""
    history = fitted.restarts.histories[fitted.restarts.best_index]
    directory = save(fitted.model, out / "model", history, overwrite=True)
    save_reference(fitted.train, directory)
    write_atomically(out / "adata.h5ad", fitted.adata.write_h5ad)
    return write_json(out / "summary.json", summarise(fitted))


def read_fit(directory: str | Path) -> Fitted:
    """Read what :func:`write_fit` wrote; factors are computed anew from the saved model."""
    folder = Path(directory)
    if not (folder / "model").is_dir():
        raise FileNotFoundError(f"{folder / 'model'} not found: {folder} is not a finished fit.")
    model, reference = load(folder / "model"), load_reference(folder / "model")
    history = read_history(folder / "model")
    best = _best_objective(folder / "summary.json")
    adata = read_h5ad(folder / "adata.h5ad")
    everyone = read_like(adata, reference)
    part_of = split_column(adata, folder / "adata.h5ad")[everyone.obs_names].to_numpy()
    train, held = (
        everyone.subset(np.flatnonzero(part_of == part)) for part in ("train", "heldout")
    )
    restarts = Restarts(model, (best,), (history,), (model,), (history.seed,))
    return Fitted(model, restarts, train, held, factors(model, everyone), adata)


def read_like(adata: AnnData, reference: ExpressionData) -> ExpressionData:
    """Read cells as the training data of a saved model were read."""
    report = reference.report
    layer = None if report.source == "X" else report.source.removeprefix("layer ").strip("'\"")
    return from_anndata(
        adata,
        layer=layer,
        counts=report.counts,
        size_factor_key=report.size_factor_key,
        study_key=report.study_key,
        batch_key=report.batch_key,
        like=reference,
        drop_empty=True,
    )


def output_folder(path: str | Path) -> Path:
    """Make a directory to write to before any work is done for it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"cannot write to {folder}: a file is in the way.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"cannot make the directory {folder}.") from error
    return folder


def split_column(adata: AnnData, path: str | Path) -> pd.Series:
    """Column that says which cells were fitted and which were held out."""
    if SPLIT_COLUMN not in adata.obs:
        raise KeyError(
            f"{path} has no obs column {SPLIT_COLUMN!r}, which says what cells were held out."
        )
    return adata.obs[SPLIT_COLUMN]


def summarise(fitted: Fitted) -> dict[str, Any]:
    """Sizes, losses, held-out log predictive density and the top genes of every factor.

    With studies, also the block of every factor and the density by study.
    """
    history = fitted.restarts.histories[fitted.restarts.best_index]
    density = log_predictive_density(fitted.model, fitted.heldout.batch(), n_samples=50)
    tops = top_genes(
        fitted.factors,
        10,
        var_names=fitted.train.var_names,
        by_effect=True,
        study_names=fitted.train.study_names,
    )
    genes = list(tops.groupby("factor", sort=False))
    support = fitted.factors.support
    return {
        "n_train": len(fitted.train),
        "n_heldout": len(fitted.heldout),
        "n_genes": fitted.train.n_vars,
        "n_factors": len(fitted.factors.columns),
        "mean_support": None if support is None else float(support.float().mean()),
        "epochs": len(history.records),
        "best_epoch": history.best_epoch,
        "stopped": history.stopped,
        "objectives": list(fitted.restarts.objectives),
        "heldout_log_density_per_cell": float(density.mean()),
        "top_genes": {str(name): list(top["gene"]) for name, top in genes},
        "top_effects": {str(name): top["effect"].tolist() for name, top in genes},
    } | _by_study(fitted, density)


def _by_study(fitted: Fitted, density: Tensor) -> dict[str, Any]:
    if fitted.blocks is None:
        return {}
    study, names = fitted.heldout.batch().study, fitted.train.study_names or ()
    assert study is not None
    per_study = {name: density[study == m].mean().item() for m, name in enumerate(names)}
    used = effective_factors(fitted.model, fitted.train.data)
    counted = zip(used.block.tolist(), used.n_columns, used.n_active, used.effective, strict=True)
    return {
        "blocks": dict(zip(fitted.factor_names, fitted.blocks, strict=True)),
        "effective_factors": {
            SHARED_NAME if block < 0 else names[block]: {
                "columns": int(columns),
                "active": int(active),
                "effective": round(float(effective), 2),
            }
            for block, columns, active, effective in counted
        },
        "heldout_log_density_per_study": per_study,
    }


def _check_options_of_studies(study_key: str | None, *others: object) -> None:
    if study_key is None and any(value is not None for value in others):
        raise ValueError(
            "batches, shared and specific factors are for several studies: give study_key=... too."
        )


def _mark_split(adata: AnnData, train: ExpressionData, held: ExpressionData) -> None:
    labels = pd.Series("dropped", index=adata.obs_names)
    labels[train.obs_names], labels[held.obs_names] = "train", "heldout"
    adata.obs[SPLIT_COLUMN] = pd.Categorical(labels)


def write_json(path: Path, values: Any) -> Any:
    """Write plain values as JSON, atomically; return them with None for NaN and infinity."""
    written = _finite(values)
    text = json.dumps(written, indent=2, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text))
    return written


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _best_objective(path: Path) -> float:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found.")
    try:
        return float(max(json.loads(path.read_text())["objectives"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
