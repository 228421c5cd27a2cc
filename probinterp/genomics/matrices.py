"""Expression matrices in every form AnnData may hold them, checked and read by rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from probinterp.inference.data import csr_tensor

BLOCK = 4096  # rows at a time while checking
LARGEST_EXACT = 2**24  # larger integers are not exact in float32

Rows = sparse.csr_matrix | np.ndarray


class Names(NamedTuple):
    """Names that errors use to say where a bad value stands."""

    cells: np.ndarray
    genes: np.ndarray
    where: str


class Totals(NamedTuple):
    """Sums found while checking: per cell (N,) and per gene (G,), float64."""

    cells: np.ndarray
    genes: np.ndarray


def as_rows(matrix: Any, where: str) -> Any:
    """The matrix in a form that is cheap to read by rows, or a ``TypeError`` that names it.

    Dense arrays, CSR and backed matrices are passed on, CSC is converted once.
    """
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{where} is a masked array; fill or drop the masked values first.")
    if isinstance(matrix, np.ndarray):
        return _require_numbers(np.asarray(matrix), where)
    if sparse.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            raise TypeError(f"{where} must be dense, CSR or CSC, got format {matrix.format!r}.")
        _require_numbers(matrix, where)
        _require_structure(matrix, where)
        rows = matrix.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        return rows
    if hasattr(matrix, "shape") and hasattr(matrix, "dtype"):  # a matrix in a file
        if getattr(matrix, "format", "csr") == "csc":
            raise TypeError(
                f"{where} is stored by columns (CSC) in the file; rewrite it as CSR or read it "
                "into memory first."
            )
        return _require_numbers(matrix, where)
    raise TypeError(f"{where} must be an array or a sparse matrix, got {type(matrix).__name__}.")


def checked_totals(matrix: Any, names: Names, *, counts: bool) -> Totals:
    """Check every value, one block of rows at a time, and return the sums.

    Raises
    ------
    ValueError
        At the first value that is NaN, infinite, negative or no integer (the latter two only
        for counts) or too large for float32; it names the cell and the gene.
    """
    cells = np.zeros(matrix.shape[0])
    genes = np.zeros(matrix.shape[1])
    for start, block in _blocks(matrix):
        values = block.data if sparse.issparse(block) else block
        _require_values(values, block, start, names, counts=counts)
        cells[start : start + block.shape[0]] = np.asarray(block.sum(1, dtype=np.float64)).ravel()
        genes += np.asarray(block.sum(0, dtype=np.float64)).ravel()
    return Totals(cells, genes)


def in_memory(matrix: Any) -> bool:
    """Whether a checked matrix is an array and not a file."""
    return isinstance(matrix, np.ndarray) or sparse.issparse(matrix)


def read_rows(matrix: Any, index: np.ndarray, genes: np.ndarray | None) -> Tensor:
    """Rows ``index`` as float32, dense or ``sparse_csr``; ``genes`` picks columns in order.

    Files are read in increasing order of the rows.
    """
    if in_memory(matrix):
        block = matrix[index]
    else:
        unique, back = np.unique(index, return_inverse=True)
        block = matrix[unique][back]
    if genes is not None:
        block = block[:, genes]
    return as_tensor(block)


def as_tensor(block: Rows) -> Tensor:
    """Float32 tensor of a block, ``sparse_csr`` where the block is sparse."""
    if not sparse.issparse(block):
        return torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32))
    rows = sparse.csr_matrix(block)
    return csr_tensor(
        torch.from_numpy(rows.indptr.astype(np.int64)),
        torch.from_numpy(rows.indices.astype(np.int64)),
        torch.from_numpy(rows.data.astype(np.float32)),
        rows.shape,
    )


def _blocks(matrix: Any) -> Iterator[tuple[int, Rows]]:
    for start in range(0, matrix.shape[0], BLOCK):
        yield start, matrix[start : start + BLOCK]


def _require_numbers(matrix: Any, where: str) -> Any:
    if matrix.dtype.kind not in "buif":
        raise TypeError(f"{where} must hold real numbers, got dtype {matrix.dtype}.")
    return matrix


def _require_structure(matrix: Any, where: str) -> None:
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{where} is not a valid {matrix.format} matrix: {error}") from error


def _require_values(
    values: np.ndarray, block: Rows, start: int, names: Names, *, counts: bool
) -> None:
    if values.size == 0:
        return
    largest, smallest = values.max(), values.min()  # NaN spreads to both
    if not (np.isfinite(largest) and np.isfinite(smallest)):
        _fail(~np.isfinite(values), "must be finite", values, block, start, names)
    if counts and smallest < 0:
        _fail(values < 0, "must not be negative", values, block, start, names)
    if counts and values.dtype.kind == "f" and (values != np.rint(values)).any():
        problem = "must be an integer count (pass counts=False for normalised values)"
        _fail(values != np.rint(values), problem, values, block, start, names)
    if counts and largest > LARGEST_EXACT:
        problem = f"is too large for exact float32 arithmetic (limit {LARGEST_EXACT})"
        _fail(values > LARGEST_EXACT, problem, values, block, start, names)


def _fail(
    bad: np.ndarray, problem: str, values: np.ndarray, block: Rows, start: int, names: Names
) -> None:
    if sparse.issparse(block):
        position = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(block.indptr, position, side="right")) - 1
        column, value = int(block.indices[position]), values[position]
    else:
        row, column = (int(part[0]) for part in np.nonzero(bad))
        value = values[row, column]
    raise ValueError(
        f"{names.where} {problem}, got {value} in cell {names.cells[start + row]!r}, gene "
        f"{names.genes[column]!r} ({int(bad.sum())} such values in this block of rows)."
    )
