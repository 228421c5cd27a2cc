"""From an AnnData to observations that a model can be fitted to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probinterp.genomics.annotation import (
    check_layout,
    gene_order,
    numeric_column,
)
from probinterp.genomics.backed import BackedRows
from probinterp.genomics.cell_labels import (
    CellLabels,
    KnownLabels,
    UnknownStudy,
    check_labels,
    read_labels,
)
from probinterp.genomics.compat import (
    is_backed_by_columns,
    is_backed_by_rows,
    is_backed_sparse,
    matrix_of,
    stored_pointers,
)
from probinterp.genomics.load_report import LoadReport
from probinterp.genomics.validation import (
    Origin,
    Summary,
    check_dtype,
    check_pointers,
    checked_matrix,
    checked_positions,
    float32_copy,
    listing,
    row_blocks,
    row_tensor,
    summarise,
)
from probinterp.inference.data import ArrayData
from probinterp.models.base import Batch


@dataclass(frozen=True, eq=False)
class ExpressionData:
    """Cells by genes with the names that lead back to the AnnData; see :func:`from_anndata`.

    Parameters
    ----------
    data
        Values, size factors, studies and batches: in memory, or backed by a file.
    obs_names, var_names
        Names of the N cells and the G genes.
    study_names
        Name of each study index, or None without studies.
    library_size
        Total count of each cell, (N,), or None where there are no size factors.
    median_library_size
        Library size that the size factor 1 stands for, or None.
    report
        What was read and what was left out.
    nuisance_names
        Name of each index of a technical batch (``Batch.nuisance``), or None without batches.
    """

    data: ArrayData | BackedRows
    obs_names: pd.Index
    var_names: pd.Index
    study_names: tuple[str, ...] | None
    library_size: NDArray[np.float64] | None
    median_library_size: float | None
    report: LoadReport
    nuisance_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.obs_names)

    @property
    def n_obs(self) -> int:
        """Number of cells, N."""
        return len(self.obs_names)

    @property
    def n_vars(self) -> int:
        """Number of genes, G."""
        return len(self.var_names)

    @property
    def block_size(self) -> int:
        """How many neighbouring cells are cheapest to read together: 1 in memory."""
        return self.data.block_size if isinstance(self.data, BackedRows) else 1

    def batch(self, index: Tensor | None = None) -> Batch:
        """Cells ``index`` (B,), or all of them; ``x`` is dense or ``sparse_csr``, as stored."""
        return self.data.batch(index)

    def subset(self, index: ArrayLike | Tensor) -> ExpressionData:
        """Keep the cells ``index`` (positions or a Boolean mask), in that order.

        The median library size stays, so that size factors keep their meaning.

        Raises
        ------
        IndexError
            If a position lies outside 0..N-1 or a mask has another length than N.
        """
        positions = checked_positions(index, len(self))
        library = None if self.library_size is None else self.library_size[positions]
        data = self.data.subset(torch.from_numpy(positions))
        return replace(self, data=data, obs_names=self.obs_names[positions], library_size=library)

    def with_median_library_size(self, median: float) -> ExpressionData:
        """Return the same cells with the size factor 1 at another library size.

        Raises
        ------
        ValueError
            If ``median`` is not positive and finite, or if the data have no size factors.
        """
        if self.library_size is None:
            raise ValueError("these data have no library sizes to be scaled.")
        median = _checked_median(median)
        factor = _size_factor(self.library_size, median)
        if isinstance(self.data, BackedRows):
            data: ArrayData | BackedRows = self.data.with_size_factor(factor)
        else:
            labels = {"study": self.data.study, "nuisance": self.data.nuisance}
            data = ArrayData(self.data.x, size_factor=factor, **labels)
        return replace(self, data=data, median_library_size=median)


def from_anndata(
    adata: AnnData,
    *,
    layer: str | None = None,
    counts: bool = True,
    study_key: str | None = None,
    batch_key: str | None = None,
    unknown_study: UnknownStudy = "raise",
    size_factor_key: str | None = None,
    median_library_size: float | None = None,
    like: ExpressionData | None = None,
    drop_empty: bool = False,
) -> ExpressionData:
    r"""Read cells by genes out of an AnnData, checking every entry before any model sees it.

    The size factor of cell i is :math:`s_i = \ell_i / \mathrm{median}(\ell)` with the library
    size :math:`\ell_i`: the sum of its row over the genes read, or ``obs[size_factor_key]``.

    Parameters
    ----------
    adata
        Annotated data, in memory, a view, or backed by an h5ad file that holds the matrix dense or
        CSR. Backed data stay in the file and are read in blocks; ``adata`` must stay open.
    layer
        Layer to read; None reads ``X``.
    counts
        Whether the values must be counts: integers from 0 to 2**24. With False any finite
        numbers are accepted, and there are size factors only with ``size_factor_key``.
    study_key
        ``obs`` column (categorical, strings, integers or Booleans) that names each cell's study.
    batch_key
        ``obs`` column, of the same types, that names each cell's technical batch: a nuisance, to
        be taken out rather than explained (``Batch.nuisance``).
    unknown_study
        What to do with studies that ``like`` does not have: ``"raise"``, or ``"shared"`` to read
        their cells with the study index -1, for which models have shared factors only; they are
        listed in ``report``.
    size_factor_key
        ``obs`` column with total counts to use instead of row sums, such as ``"n_counts"`` when
        the matrix holds a selection of the genes that were counted.
    median_library_size
        Library size that the size factor 1 stands for; None takes the median of these cells.
    like
        Training data that held-out data must match: genes are put into the same order by name,
        and median library size and names of studies and batches are those of ``like``.
    drop_empty
        Whether all-zero cells and genes are left out (and listed in ``report``) or refused. Genes
        are never left out when ``like`` says which there are.

    Returns
    -------
    ExpressionData
        A float32 copy, sparse where the source is sparse; later changes of ``adata`` do not
        reach it (backed data are read anew from the file).

    Raises
    ------
    TypeError
        If an argument, the matrix or a column has the wrong type.
    KeyError
        If a layer, a column or a gene of ``like`` is missing, or ``like`` lacks a study or batch.
    ValueError
        If names are duplicated, the data are empty, or an entry is not usable; the message
        names the cell, the gene and the layer.

    Notes
    -----
    Booleans are read as 0 and 1. ``np.matrix`` is read as an array. A view of backed data is read
    into memory; to split a backed file, split the result of this function.
    """
    check_layout(adata, layer)
    _check_options(counts, size_factor_key, median_library_size, like)
    known = None if like is None else KnownLabels(like.study_names, like.nuisance_names)
    check_labels(study_key, batch_key, unknown_study, known)
    genes = gene_order(adata.var_names, None if like is None else like.var_names)
    source = "X" if layer is None else f"layer {layer!r}"
    origin = Origin(source, adata.obs_names, adata.var_names[genes.take])
    matrix, summary = _read(matrix_of(adata, layer), genes.columns, origin, counts)
    keep = _occupied(summary, origin, drop_empty, genes_fixed=like is not None)

    labels = read_labels(adata, study_key, batch_key, unknown_study, known, keep.obs)
    library = summary.total if counts else None
    if size_factor_key is not None:
        library = numeric_column(adata, size_factor_key)
    if library is not None:
        library = library[keep.obs]
        given = median_library_size if like is None else like.median_library_size
        median_library_size = _checked_median(np.median(library) if given is None else given)
    report = LoadReport(
        source,
        _storage(matrix),
        counts,
        size_factor_key,
        dropped_obs=tuple(origin.obs_names[~keep.obs]),
        dropped_vars=tuple(origin.var_names[~keep.vars]),
        ignored_vars=genes.ignored,
        reordered_vars=genes.reordered,
        study_key=study_key,
        batch_key=batch_key,
        **labels.left_out(),
    )
    return ExpressionData(
        _compose(matrix, keep, _size_factor(library, median_library_size), labels),
        origin.obs_names[keep.obs],
        origin.var_names[keep.vars],
        labels.study_names,
        library,
        median_library_size,
        report,
        labels.batch_names,
    )


class _Kept(NamedTuple):
    obs: NDArray[np.bool_]
    vars: NDArray[np.bool_]


def _check_options(
    counts: Any,
    size_factor_key: str | None,
    median_library_size: float | None,
    like: Any,
) -> None:
    if not isinstance(counts, bool):
        raise TypeError(f"counts must be True or False, got {counts!r}.")
    if median_library_size is not None:
        if like is not None:
            raise ValueError("give median_library_size or like, not both.")
        if not counts and size_factor_key is None:
            raise ValueError("median_library_size has no use with counts=False: no size factors.")
    if like is None:
        return
    if not isinstance(like, ExpressionData):
        raise TypeError(f"like must be an ExpressionData, got {type(like).__name__}.")
    asked = {"counts": counts, "size_factor_key": size_factor_key}
    for name, value in asked.items():
        if value != getattr(like.report, name):
            raise ValueError(
                f"{name}={value!r}, but the reference data were read with "
                f"{name}={getattr(like.report, name)!r}."
            )


def _read(
    matrix: Any, columns: NDArray[np.int64] | None, origin: Origin, counts: bool
) -> tuple[Any, Summary]:
    if is_backed_by_columns(matrix):
        raise TypeError(
            f"{origin.source} is stored by columns (CSC) in the file, which is slow to read by "
            "rows; read it with adata.to_memory(), or write it again as CSR."
        )
    if is_backed_by_rows(matrix):
        check_dtype(matrix.dtype, origin.source)
        if is_backed_sparse(matrix):
            pointers, n_entries = stored_pointers(matrix)
            check_pointers(pointers, len(origin.obs_names), n_entries, origin.source)
        rows = BackedRows(matrix, np.arange(len(origin.obs_names)), columns, origin.source)
        return rows, summarise(rows.blocks(), origin, counts=counts)
    checked = checked_matrix(matrix, origin.source)
    checked = checked if columns is None else checked[:, columns]
    return checked, summarise(row_blocks(checked), origin, counts=counts)


def _occupied(summary: Summary, origin: Origin, drop_empty: bool, *, genes_fixed: bool) -> _Kept:
    seen = np.ones_like(summary.seen) if genes_fixed else summary.seen
    keep = _Kept(summary.total > 0, seen)
    for what, kept, names in (
        ("cells", keep.obs, origin.obs_names),
        ("genes", keep.vars, origin.var_names),
    ):
        if not kept.any():
            raise ValueError(f"{origin.source} holds nothing but zeros.")
        if not (kept.all() or drop_empty):
            raise ValueError(
                f"{origin.source} holds {(~kept).sum()} {what} with nothing but zeros: "
                f"{listing(names[~kept])}; filter them, or leave them out with drop_empty=True."
            )
    return keep


def _compose(
    matrix: Any,
    keep: _Kept,
    size_factor: Tensor | None,
    labels: CellLabels,
) -> ArrayData | BackedRows:
    if isinstance(matrix, BackedRows):
        columns = np.arange(len(keep.vars)) if matrix.columns is None else matrix.columns
        chosen = matrix.columns if keep.vars.all() else columns[keep.vars]
        return BackedRows(
            matrix.matrix,
            matrix.rows[keep.obs],
            chosen,
            matrix.source,
            size_factor=size_factor,
            **labels.columns(),
        )
    kept = matrix if keep.obs.all() else matrix[keep.obs]
    values = float32_copy(kept if keep.vars.all() else kept[:, keep.vars])
    return ArrayData(row_tensor(values), size_factor=size_factor, **labels.columns())


def _storage(matrix: Any) -> str:
    if isinstance(matrix, BackedRows):
        return f"backed {'csr' if is_backed_sparse(matrix.matrix) else 'dense'}"
    return "csr" if sp.issparse(matrix) else "dense"


def _checked_median(median: float) -> float:
    if not (np.isfinite(median) and median > 0):
        raise ValueError(f"the median library size must be positive and finite, got {median}.")
    return float(median)


def _size_factor(library: NDArray[np.float64] | None, median: float | None) -> Tensor | None:
    if library is None or median is None:
        return None
    return torch.from_numpy((library / median).astype(np.float32))
