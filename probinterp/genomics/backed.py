"""Rows of a matrix that stays in an h5ad file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from probinterp.genomics.validation import checked_matrix, float32_copy, row_tensor
from probinterp.models.base import Batch

BLOCK_SIZE = 1024
CACHED_BLOCKS = 16


class BackedRows:
    """Observations read from a file in blocks of neighbouring rows.

    The latest blocks are kept in memory, so that a loop that shuffles ``block_size`` rows within
    groups of 16 blocks reads every block once per epoch; rows asked for at random cost one block
    each. The file must stay open and unchanged while the object is in use.

    Parameters
    ----------
    matrix
        Backed CSR matrix or HDF5 dataset, (N_file, G_file); bound once by the caller.
    rows
        Rows of the file that are the observations, (N,).
    columns
        Columns of the file that are the features, (G,), or None for all in file order.
    source
        Name of the matrix in messages.
    size_factor, study, nuisance
        One value per observation, (N,), or None.
    """

    block_size = BLOCK_SIZE

    def __init__(
        self,
        matrix: Any,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64] | None,
        source: str,
        *,
        size_factor: Tensor | None = None,
        study: Tensor | None = None,
        nuisance: Tensor | None = None,
    ) -> None:
        self.matrix, self.rows, self.columns, self.source = matrix, rows, columns, source
        self.size_factor, self.study, self.nuisance = size_factor, study, nuisance
        self._cache: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def with_size_factor(self, size_factor: Tensor | None) -> BackedRows:
        """Return the same rows with other size factors."""
        return BackedRows(
            self.matrix,
            self.rows,
            self.columns,
            self.source,
            size_factor=size_factor,
            study=self.study,
            nuisance=self.nuisance,
        )

    def subset(self, index: Tensor) -> BackedRows:
        """Keep the observations ``index``, in that order; nothing is read."""
        return BackedRows(
            self.matrix,
            self.rows[index.numpy()],
            self.columns,
            self.source,
            size_factor=None if self.size_factor is None else self.size_factor[index],
            study=None if self.study is None else self.study[index],
            nuisance=None if self.nuisance is None else self.nuisance[index],
        )

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """All rows in order, block by block, in the dtype of the file."""
        for number in range(-(-len(self) // self.block_size)):
            yield number * self.block_size, self._read(number)

    def batch(self, index: Tensor | None = None) -> Batch:
        """Observations ``index`` (B,), or all of them, as a :class:`Batch`; CSR stays CSR."""
        index = torch.arange(len(self)) if index is None else index
        wanted = index.numpy()
        number = wanted // self.block_size
        # blocks at hand first, so that loading the others cannot push them out
        needed = sorted(np.unique(number).tolist() or [0], key=lambda n: (n not in self._cache, n))
        places = [np.flatnonzero(number == n) for n in needed]
        parts = [
            self._block(n)[wanted[place] - n * self.block_size]
            for n, place in zip(needed, places, strict=True)
        ]
        order = np.argsort(np.concatenate(places))
        sparse = sp.issparse(parts[0])
        rows = sp.vstack(parts, format="csr") if sparse else np.concatenate(parts)
        return Batch(
            row_tensor(rows[order]),
            None if self.study is None else self.study[index],
            None if self.size_factor is None else self.size_factor[index],
            nuisance=None if self.nuisance is None else self.nuisance[index],
        )

    def _block(self, number: int) -> Any:
        block = self._cache.pop(number, None)
        if block is None:
            block = float32_copy(self._read(number))
        self._cache[number] = block
        while len(self._cache) > CACHED_BLOCKS:
            self._cache.pop(next(iter(self._cache)))
        return block

    def _read(self, number: int) -> Any:
        rows = self.rows[number * self.block_size : (number + 1) * self.block_size]
        first, last = int(rows.min()), int(rows.max()) + 1
        if last - first <= 4 * len(rows):  # reading the gaps is cheaper than jumping over them
            block = checked_matrix(self.matrix[first:last], self.source)
            if not np.array_equal(rows, np.arange(first, last)):
                block = block[rows - first]
        else:
            in_file, place = np.unique(rows, return_inverse=True)
            block = checked_matrix(self.matrix[in_file], self.source)[place]
        return block if self.columns is None else block[:, self.columns]
