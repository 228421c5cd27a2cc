"""Files of cells by genes."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
from anndata import AnnData


def read_h5ad(path: str | Path) -> AnnData:
    """Read a whole h5ad file.

    Raises
    ------
    FileNotFoundError
        If there is no file of that name.
    ValueError
        If it is not an h5ad file, or a damaged one.
    """
    if Path(path).is_dir():
        raise FileNotFoundError(f"{path} is a directory; expected an .h5ad file.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} not found.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the data is checked when read
            return anndata.read_h5ad(path)
    except PermissionError:
        raise
    except Exception as error:  # h5py and anndata raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable .h5ad file: {reason}") from error
