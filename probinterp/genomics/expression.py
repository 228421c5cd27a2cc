"""Expression data: AnnData in, checked minibatches out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from probinterp.genomics.compat import as_strings, matrix_of, obs_column
from probinterp.genomics.matrices import (
    Names,
    Totals,
    as_rows,
    checked_totals,
    in_memory,
    read_rows,
)
from probinterp.models.base import Batch

BACKED_BLOCK = 1024


class LoadReport(NamedTuple):
    """What was left out while reading, and from where.

    Attributes
    ----------
    where
        Matrix that was read, ``"adata.X"`` or ``"layer 'counts'"``.
    empty_cells, empty_genes
        Names of cells and genes without a single count, which were dropped.
    """

    where: str
    empty_cells: tuple[str, ...]
    empty_genes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.where}: dropped {len(self.empty_cells)} cells and "
            f"{len(self.empty_genes)} genes without counts"
        )


class ExpressionData:
    """Checked expression values of N cells and G genes that minibatches can be cut from.

    Made by :func:`from_anndata`. Sparse rows stay sparse until they reach the model's device;
    rows of a backed file are read when they are asked for.

    Attributes
    ----------
    obs_names, var_names
        Names of cells (N,) and genes (G,).
    size_factor
        Library size over the median library size of the training data, (N,), or None.
    median_library_size
        That median, to be used for held-out data.
    study, study_names
        Index of each cell's study, (N,), and the names of the studies; None and () without.
    report
        What was dropped.
    """

    def __init__(
        self,
        matrix: Any,
        rows: np.ndarray,
        genes: np.ndarray | None,
        names: tuple[np.ndarray, np.ndarray],
        sizes: tuple[Tensor | None, float | None],
        studies: tuple[Tensor | None, tuple[str, ...]],
        report: LoadReport,
    ) -> None:
        self._matrix, self._rows, self._genes = matrix, rows, genes
        self.obs_names, self.var_names = names
        self.size_factor, self.median_library_size = sizes
        self.study, self.study_names = studies
        self.report = report
        self.block_size = 1 if in_memory(matrix) else BACKED_BLOCK

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def n_features(self) -> int:
        """Number of genes, G."""
        return len(self.var_names)

    def batch(self, index: Tensor | None = None) -> Batch:
        """Cells ``index`` (B,), or all of them; ``x`` is float32, sparse where the source is."""
        chosen = slice(None) if index is None else index
        x = read_rows(self._matrix, self._rows[chosen], self._genes)
        study = None if self.study is None else self.study[chosen]
        size_factor = None if self.size_factor is None else self.size_factor[chosen]
        return Batch(x, study, size_factor)

    def subset(self, index: Tensor | Sequence[int]) -> ExpressionData:
        """Keep the cells ``index``, in that order; size factors stay as they are."""
        chosen = torch.as_tensor(index, dtype=torch.int64)
        sizes = None if self.size_factor is None else self.size_factor[chosen]
        return ExpressionData(
            self._matrix,
            self._rows[chosen.numpy()],
            self._genes,
            (self.obs_names[chosen.numpy()], self.var_names),
            (sizes, self.median_library_size),
            (None if self.study is None else self.study[chosen], self.study_names),
            self.report,
        )

    def __repr__(self) -> str:
        return f"ExpressionData({len(self)} cells x {self.n_features} genes; {self.report})"


def from_anndata(
    adata: AnnData,
    *,
    layer: str | None = None,
    counts: bool = True,
    size_factor_key: str | None = None,
    study_key: str | None = None,
    like: ExpressionData | None = None,
) -> ExpressionData:
    """Check an AnnData object and make it ready for :func:`probinterp.fit`.

    Parameters
    ----------
    adata
        Cells by genes: dense, CSR, CSC, a view, or backed by a file (not CSC).
    layer
        Layer to read; default ``adata.X``.
    counts
        Whether the values must be counts. Cells and genes without a single count are dropped
        and listed in ``report``; normalised values need ``counts=False``.
    size_factor_key
        Column of ``adata.obs`` with total counts a cell, where these are not the row sums of
        the matrix (for example after a choice of genes).
    study_key
        Column of ``adata.obs`` with the study or donor of each cell.
    like
        Training data. Genes are put into their order by name, studies and the median library
        size are taken from there, and no gene is dropped.

    Returns
    -------
    ExpressionData
        With size factors for counts.

    Raises
    ------
    TypeError
        If ``adata`` or its matrix has the wrong type.
    KeyError
        If a layer, column, gene or study is missing; the text lists what there is.
    ValueError
        If a value is NaN, infinite, negative, no integer, too large, or a name stands twice.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData object, got {type(adata).__name__}.")
    where = "adata.X" if layer is None else f"layer {layer!r}"
    if 0 in adata.shape:
        raise ValueError(f"adata must hold cells and genes, got shape {adata.shape}.")
    cells = _unique_names(adata.obs_names, "adata.obs_names")
    genes = _unique_names(adata.var_names, "adata.var_names")
    matrix = as_rows(matrix_of(adata, layer), where)
    totals = checked_totals(matrix, Names(cells, genes, where), counts=counts)
    rows = np.flatnonzero(totals.cells > 0) if counts else np.arange(len(cells))
    if len(rows) == 0:
        raise ValueError(f"{where} holds no count at all.")
    columns = _columns(genes, totals, counts, like)
    dropped = np.setdiff1d(np.arange(len(genes)), columns) if like is None else []
    empty_cells = np.setdiff1d(np.arange(len(cells)), rows)
    identity = len(columns) == len(genes) and bool((columns == np.arange(len(genes))).all())
    return ExpressionData(
        matrix,
        rows,
        None if identity else columns,
        (cells[rows], genes[columns]),
        _size_factors(adata, totals, rows, counts, size_factor_key, like),
        _studies(adata, study_key, rows, like),
        LoadReport(where, tuple(cells[empty_cells]), tuple(genes[dropped]) if len(dropped) else ()),
    )


def _unique_names(index: Any, where: str) -> np.ndarray:
    names = np.asarray([str(name) for name in index], dtype=object)
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise ValueError(
            f"{where} must be unique, but {unique[counts > 1][0]!r} stands "
            f"{int(counts.max())} times ({int((counts > 1).sum())} names repeat)."
        )
    return names


def _columns(
    genes: np.ndarray, totals: Totals, counts: bool, like: ExpressionData | None
) -> np.ndarray:
    """Columns to read, in order: those of the training data, or all that have a count."""
    if like is None:
        return np.flatnonzero(totals.genes > 0) if counts else np.arange(len(genes))
    position = {name: column for column, name in enumerate(genes)}
    missing = [name for name in like.var_names if name not in position]
    if missing:
        raise KeyError(
            f"{len(missing)} of the {like.n_features} genes of the training data are missing, "
            f"for example {missing[:3]}."
        )
    return np.array([position[name] for name in like.var_names])


def _size_factors(
    adata: AnnData,
    totals: Totals,
    rows: np.ndarray,
    counts: bool,
    key: str | None,
    like: ExpressionData | None,
) -> tuple[Tensor | None, float | None]:
    if not counts and key is None:
        return None, None
    sizes = totals.cells if key is None else _numeric(adata, key)
    sizes = sizes[rows]
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        cell = adata.obs_names[rows[np.flatnonzero(bad)[0]]]
        raise ValueError(
            f"library sizes in adata.obs[{key!r}] must be positive and finite, got "
            f"{sizes[bad][0]} in cell {cell!r}."
        )
    median = float(np.median(sizes)) if like is None else like.median_library_size
    if median is None:
        raise ValueError("like was read without counts, so it has no median library size.")
    return torch.from_numpy((sizes / median).astype(np.float32)), median


def _numeric(adata: AnnData, key: str) -> np.ndarray:
    column = obs_column(adata, key)
    try:
        return column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"adata.obs[{key!r}] must hold numbers, got dtype {column.dtype}."
        ) from error


def _studies(
    adata: AnnData, key: str | None, rows: np.ndarray, like: ExpressionData | None
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Index of each cell's study by name; unused categories do not count."""
    if key is None:
        return None, ()
    column = obs_column(adata, key).iloc[rows]
    if column.isna().any():
        cell = adata.obs_names[rows[np.flatnonzero(column.isna())[0]]]
        raise ValueError(f"adata.obs[{key!r}] has no value in cell {cell!r}.")
    labels = as_strings(column)
    names = tuple(sorted(set(labels))) if like is None else like.study_names
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise KeyError(f"studies {unknown} are not in the training data, which has {list(names)}.")
    position = {name: number for number, name in enumerate(names)}
    return torch.tensor([position[label] for label in labels]), names
