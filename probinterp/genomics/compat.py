"""Differences between versions of anndata and scanpy, kept in one place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset


@contextmanager
def third_party_quiet(modules: str) -> Iterator[None]:
    """Ignore the deprecation notices of ``modules`` (a regular expression) for one call.

    Filters are put back on exit, and only notices about the libraries' own future are ignored:
    the caller of this package can do nothing about them.
    """
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=modules)
        yield


def read_pbmc68k_reduced() -> AnnData:
    """Read the file that scanpy ships; anndata announces the age of its format in a warning."""
    with third_party_quiet("scanpy|anndata|legacy_api_wrap"):
        import scanpy as sc

        # anndata's notice about old files is raised on behalf of the caller of `read_h5ad`
        warnings.filterwarnings("ignore", message=".*(older version|old format|legacy).*")
        return sc.datasets.pbmc68k_reduced()


def matrix_of(adata: AnnData, layer: str | None) -> Any:
    """``X`` or a layer; bound once, because backed data make a new object at each access."""
    return adata.X if layer is None else adata.layers[layer]


def is_backed_by_rows(matrix: Any) -> bool:
    """Whether ``matrix`` lies in a file and can be read by rows."""
    return isinstance(matrix, CSRDataset | h5py.Dataset)


def is_backed_by_columns(matrix: Any) -> bool:
    """Whether ``matrix`` lies in a file by columns."""
    return isinstance(matrix, CSCDataset)


def is_backed_sparse(matrix: Any) -> bool:
    """Whether ``matrix`` lies in a file in a sparse format."""
    return isinstance(matrix, CSRDataset | CSCDataset)


def stored_pointers(matrix: Any) -> tuple[Any, int]:
    """Row pointers of a sparse matrix in a file, and how many entries it holds."""
    return matrix.group["indptr"][:], min(len(matrix.group[name]) for name in ("indices", "data"))
