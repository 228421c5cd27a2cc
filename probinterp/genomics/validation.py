"""Checks of expression matrices: the first bad entry is named by cell, gene and layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from probinterp.inference.data import csr_tensor

LARGEST_EXACT_COUNT = 2**24  # float32 holds every integer up to here
LARGEST_VALUE = float(np.finfo(np.float32).max)
CHUNK = 1 << 16  # values looked at together; small enough for the cache
BLOCK = 1 << 20  # entries of a block of rows

_SAY_LAYER = "give the layer with raw counts (layer=...), or counts=False for other values"


class Origin(NamedTuple):
    """Where a matrix comes from, for messages."""

    source: str
    obs_names: pd.Index
    var_names: pd.Index


class Summary(NamedTuple):
    """What one pass over the rows has found.

    Parameters
    ----------
    total
        Sum of the absolute values of each observation, (N,), float64.
    seen
        Whether a feature has an entry other than zero, (G,).
    """

    total: NDArray[np.float64]
    seen: NDArray[np.bool_]


class _Fault(NamedTuple):
    what: str
    where: Callable[[NDArray[Any]], NDArray[np.bool_]]
    advice: str


_ALWAYS = (
    _Fault("NaN", np.isnan, "impute or drop these entries first"),
    _Fault("an infinite value", np.isinf, "expected finite values"),
    _Fault(
        "a value beyond float32",
        lambda v: np.abs(v) > LARGEST_VALUE,
        f"expected absolute values up to {LARGEST_VALUE:.3g}",
    ),
)
_COUNTS = (
    *_ALWAYS[:2],
    _Fault("a negative count", lambda v: v < 0, f"expected counts >= 0: {_SAY_LAYER}"),
    _Fault(
        "a count too large for float32",
        lambda v: v > LARGEST_EXACT_COUNT,
        f"expected counts up to 2**24 = {LARGEST_EXACT_COUNT}",
    ),
    _Fault(
        "a non-integer count",
        lambda v: np.rint(v) != v,
        f"expected integer counts (is it log-normalised?): {_SAY_LAYER}",
    ),
)


def checked_matrix(matrix: Any, source: str) -> Any:
    """``matrix`` as an ndarray or a sound ``csr_array`` without duplicates.

    Dense and CSR arrays are shared with the caller, never changed.

    Raises
    ------
    TypeError
        If ``matrix`` is not a numpy array, CSR or CSC, is masked, or is not numeric and real.
    ValueError
        If the index arrays of a sparse matrix are inconsistent.
    """
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{source} is a masked array; fill or drop the masked entries first.")
    sparse = sp.issparse(matrix) and matrix.format in ("csr", "csc")
    if not (sparse or isinstance(matrix, np.ndarray)):
        raise TypeError(
            f"{source} must be a numpy array, CSR or CSC matrix, got {type(matrix).__name__}."
        )
    check_dtype(matrix.dtype, source)
    if not sparse:
        return np.asarray(matrix)
    rows = checked_structure(matrix, source).tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def check_dtype(dtype: np.dtype[Any], source: str) -> None:
    """Refuse anything but booleans, integers and real floating-point numbers."""
    if dtype.kind not in "biuf":
        raise TypeError(f"{source} must hold real numbers, got dtype {dtype}.")


def checked_structure(matrix: Any, source: str) -> Any:
    """Sparse array on the index arrays of ``matrix`` after a full check of them."""
    build = sp.csr_array if matrix.format == "csr" else sp.csc_array
    kinds = {name: getattr(matrix, name).dtype for name in ("indices", "indptr")}
    if any(kind.kind not in "iu" for kind in kinds.values()):
        raise ValueError(f"{source} is not a valid {matrix.format} matrix: index dtypes {kinds}.")
    try:
        sound = build((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
        sound.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{source} is not a valid {matrix.format} matrix: {error}.") from error
    return sound


def check_pointers(pointers: NDArray[Any], n_obs: int, n_entries: int, source: str) -> None:
    """Refuse row pointers of a file that skip entries or reach beyond them.

    Every block that is read is checked too, but a block shows neither entries before the first
    row nor those after the last one.
    """
    ends = (int(pointers[0]), int(pointers[-1])) if len(pointers) else (-1, -1)
    if len(pointers) != n_obs + 1 or ends != (0, n_entries) or (pointers[1:] < pointers[:-1]).any():
        raise ValueError(
            f"{source} is not a valid csr matrix: expected {n_obs + 1} non-decreasing index "
            f"pointers from 0 to {n_entries}, got {len(pointers)} from {ends[0]} to {ends[1]}."
        )


def float32_copy(matrix: Any) -> Any:
    """Copy of a checked matrix in float32, by rows, without stored zeros."""
    if not sp.issparse(matrix):
        return np.array(matrix, dtype=np.float32, order="C")
    values = matrix.astype(np.float32, copy=True)
    values.eliminate_zeros()
    return values


def row_tensor(matrix: Any) -> Tensor:
    """Tensor on the arrays of a float32 matrix, not copied: dense, or ``sparse_csr``."""
    if not sp.issparse(matrix):
        return torch.from_numpy(matrix)
    crow, columns = torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices)
    return csr_tensor(crow, columns, torch.from_numpy(matrix.data), matrix.shape)


def row_blocks(matrix: Any) -> Iterator[tuple[int, Any]]:
    """Cut an ndarray or ``csr_array`` into blocks of rows, without copies."""
    n_obs, n_vars = matrix.shape
    entries = matrix.nnz if sp.issparse(matrix) else n_obs * n_vars
    step = max(1, BLOCK * n_obs // max(entries, 1))
    for start in range(0, n_obs, step):
        stop = min(start + step, n_obs)
        if not sp.issparse(matrix):
            yield start, matrix[start:stop]
            continue
        first, last = matrix.indptr[start], matrix.indptr[stop]
        pointers = matrix.indptr[start : stop + 1] - first
        parts = (matrix.data[first:last], matrix.indices[first:last], pointers)
        yield start, sp.csr_array(parts, shape=(stop - start, n_vars))


def summarise(blocks: Iterator[tuple[int, Any]], origin: Origin, *, counts: bool) -> Summary:
    """Check every entry and add up the observations, one block of rows at a time.

    Parameters
    ----------
    blocks
        Pairs (number of the first row, ndarray or CSR block).
    origin
        Names for messages; their lengths are the shape (N, G).
    counts
        Whether the entries must be counts: integers from 0 to 2**24.

    Raises
    ------
    ValueError
        At the first NaN or infinite value, and for counts a negative, too large or non-integer
        one, with the cell and the gene.
    """
    total = np.zeros(len(origin.obs_names))
    seen = np.zeros(len(origin.var_names), dtype=bool)
    ones = np.ones(len(seen))
    for start, block in blocks:
        check_values(block, start, origin, counts=counts)
        size = block if counts else abs(block)
        total[start : start + block.shape[0]] = size @ ones  # float64, so the sum is exact
        if not seen.all():
            seen |= size.T @ np.ones(block.shape[0]) > 0
    return Summary(total, seen)


def check_values(block: Any, start: int, origin: Origin, *, counts: bool) -> None:
    """Refuse a block with an entry that cannot be used; see :func:`summarise`."""
    values = block.data if sp.issparse(block) else block.reshape(-1)
    if _sound(values, counts):
        return
    exact = values.astype(np.float64) if values.dtype.kind == "f" else values
    for fault in _COUNTS if counts else _ALWAYS:
        found = np.flatnonzero(fault.where(exact))
        if found.size:
            row, column = _position(block, int(found[0]))
            raise ValueError(
                f"{origin.source} holds {fault.what}: {values[found[0]]} at cell "
                f"{origin.obs_names[start + row]!r}, gene {origin.var_names[column]!r}; "
                f"{fault.advice}."
            )


def _sound(values: NDArray[Any], counts: bool) -> bool:
    low, high = (0, LARGEST_EXACT_COUNT) if counts else (-LARGEST_VALUE, LARGEST_VALUE)
    integral = counts and values.dtype.kind == "f"
    rounded = np.empty(min(CHUNK, values.size), dtype=values.dtype)
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        # NaN fails both comparisons; Python numbers, because float16 cannot hold the limits
        if not (chunk.min().item() >= low and chunk.max().item() <= high):
            return False
        if integral and (np.rint(chunk, out=rounded[: chunk.size]) != chunk).any():
            return False
    return True


def _position(block: Any, entry: int) -> tuple[int, int]:
    if not sp.issparse(block):
        return divmod(entry, block.shape[1])
    row = int(np.searchsorted(block.indptr, entry, side="right")) - 1
    return row, int(block.indices[entry])


def checked_positions(index: Any, n_obs: int) -> NDArray[np.int64]:
    """Positions in 0..N-1 from positions or a Boolean mask; anything else is refused."""
    found = index.numpy() if isinstance(index, Tensor) else np.asarray(index)
    if found.ndim != 1 or found.dtype.kind not in "biu" and found.size:
        raise TypeError(
            f"expected positions or a Boolean mask of shape (B,), got dtype {found.dtype}, "
            f"shape {found.shape}."
        )
    if found.dtype.kind == "b":
        if len(found) != n_obs:
            raise IndexError(f"the mask has {len(found)} entries for {n_obs} cells.")
        return np.flatnonzero(found)
    positions = found.astype(np.int64)
    if positions.size and not (positions.min() >= 0 and positions.max() < n_obs):
        raise IndexError(
            f"positions must lie in 0..{n_obs - 1}, got {positions.min()}..{positions.max()}."
        )
    return positions


def listing(names: Any, limit: int = 5) -> str:
    """First few names and how many there are, for messages."""
    shown = ", ".join(repr(str(name)) for name in list(names[:limit]))
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"
