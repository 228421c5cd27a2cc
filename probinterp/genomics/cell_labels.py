"""Which study and which technical batch each cell belongs to."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from probinterp.genomics.annotation import obs_column
from probinterp.genomics.validation import listing

UnknownStudy = Literal["raise", "shared"]


class KnownLabels(NamedTuple):
    """Names of the studies and batches of reference data, each None where it has none."""

    studies: tuple[str, ...] | None
    batches: tuple[str, ...] | None


class Labels(NamedTuple):
    """Study or technical batch of each cell.

    Parameters
    ----------
    of_cell
        Index of each cell's label, (N,), int64; -1 for an unknown one.
    names
        Name of each index.
    unused
        Categories without a cell.
    unknown
        Labels of cells that are not among the known ones.
    """

    of_cell: Tensor
    names: tuple[str, ...]
    unused: tuple[str, ...]
    unknown: tuple[str, ...]


class CellLabels(NamedTuple):
    """Study and technical batch of each cell, each None where none was asked for."""

    study: Labels | None
    batch: Labels | None

    @property
    def study_names(self) -> tuple[str, ...] | None:
        """Name of each study index."""
        return None if self.study is None else self.study.names

    @property
    def batch_names(self) -> tuple[str, ...] | None:
        """Name of each batch index."""
        return None if self.batch is None else self.batch.names

    def columns(self) -> dict[str, Tensor | None]:
        """Indices by the names that data give them, (N,) each."""
        study, batch = self.study, self.batch
        return {
            "study": None if study is None else study.of_cell,
            "nuisance": None if batch is None else batch.of_cell,
        }

    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Names that no cell or no reference data have, by field of the report."""
        study, batch = self.study, self.batch
        return {
            "unused_studies": () if study is None else study.unused,
            "unused_batches": () if batch is None else batch.unused,
            "unknown_studies": () if study is None else study.unknown,
        }


def check_labels(
    study_key: str | None,
    batch_key: str | None,
    unknown_study: UnknownStudy,
    known: KnownLabels | None,
) -> None:
    """Refuse columns that the reference data lack, or lack of those that they have."""
    if unknown_study not in ("raise", "shared"):
        raise ValueError(f'unknown_study must be "raise" or "shared", got {unknown_study!r}.')
    if unknown_study == "shared" and (known is None or study_key is None):
        raise ValueError('unknown_study="shared" needs study_key and like: known studies.')
    if known is None:
        return
    for name, key, what in (
        ("study_key", study_key, "studies"),
        ("batch_key", batch_key, "batches"),
    ):
        names = getattr(known, what)
        if (key is None) != (names is None):
            raise ValueError(f"{name}={key!r}, but the {what} of the reference data are {names}.")


def read_labels(
    adata: AnnData,
    study_key: str | None,
    batch_key: str | None,
    unknown_study: UnknownStudy,
    known: KnownLabels | None,
    keep: NDArray[np.bool_],
) -> CellLabels:
    """Study and technical batch of the cells ``keep``; ``known`` says what indices stand for."""
    study = batch = None
    studies, batches = known or KnownLabels(None, None)
    if study_key is not None:
        shared = unknown_study == "shared"
        study = label_column(adata, study_key, keep, studies, "studies", allow_unknown=shared)
    if batch_key is not None:
        batch = label_column(adata, batch_key, keep, batches, "batches")
    return CellLabels(study, batch)


def label_column(
    adata: AnnData,
    key: str,
    keep: NDArray[np.bool_],
    known: tuple[str, ...] | None,
    what: str,
    *,
    allow_unknown: bool = False,
) -> Labels:
    """Label of the cells ``keep``; with ``known`` names the indices are positions in those.

    ``what`` says in messages what the labels are: studies or batches.
    """
    column = obs_column(adata, key)
    categorical = isinstance(column.dtype, pd.CategoricalDtype)
    if not categorical and column.dtype.kind in "fcmM":
        raise TypeError(
            f"obs[{key!r}] must be categorical, strings, integers or Booleans, "
            f"got dtype {column.dtype}."
        )
    codes, labels = (
        (column.cat.codes.to_numpy(), column.cat.categories)
        if categorical
        else pd.factorize(column, sort=True)
    )
    everyone = tuple(str(name) for name in labels)
    if len(set(everyone)) < len(everyone):
        raise ValueError(f"obs[{key!r}] has categories that are equal as strings: {everyone}.")
    n_cells = np.bincount(codes[keep], minlength=len(everyone))
    used = tuple(name for name, n in zip(everyone, n_cells, strict=True) if n)
    unused = tuple(name for name, n in zip(everyone, n_cells, strict=True) if not n)
    names = used if known is None else known
    unknown = tuple(name for name in used if name not in names)
    if unknown and not allow_unknown:
        raise KeyError(
            f"obs[{key!r}] has {what} that the reference data lack: {listing(unknown)}; "
            f"known: {listing(names)}."
        )
    position = np.array([names.index(name) if name in names else -1 for name in everyone])
    of_cell = torch.from_numpy(position[codes[keep]].astype(np.int64))
    return Labels(of_cell, names, unused, unknown)
