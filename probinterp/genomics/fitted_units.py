"""Which cells a model was fitted to, by fingerprints of their names and values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from probinterp.genomics.expression import ExpressionData
from probinterp.inference.data import as_batch
from probinterp.inference.storage import write_atomically

FILE = "fitted_units.npy"
BLOCK = 512  # cells that are dense at a time


def fingerprints(data: ExpressionData) -> NDArray[np.uint64]:
    """64-bit digest of the name and the values of every cell, shape (N,).

    Names alone say little (many files count their cells from 0), values alone repeat in sparse
    data. Genes must be in the order of the fit.
    """
    found = np.empty(len(data), np.uint64)
    for index in torch.arange(len(data)).split(BLOCK):
        rows = as_batch(data.batch(index)).x.float().contiguous().numpy()
        for i, row in zip(index.tolist(), rows, strict=True):
            digest = hashlib.blake2b(str(data.obs_names[i]).encode(), digest_size=8)
            digest.update(row.tobytes())
            found[i] = int.from_bytes(digest.digest(), "little")
    return found


def save_fitted_units(data: ExpressionData, directory: str | Path) -> Path:
    """Write the fingerprints of the training cells beside a model."""
    path = Path(directory) / FILE

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, np.sort(fingerprints(data)), allow_pickle=False)

    write_atomically(path, write)
    return path


def refuse_fitted_units(data: ExpressionData, directory: str | Path) -> None:
    """Raise unless all cells are new to the model in ``directory``.

    Nothing is refused where the model was saved without fingerprints.

    Raises
    ------
    ValueError
        If cells with the same name and values were used in the fit, or the file is damaged.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return
    try:
        fitted = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    known = np.isin(fingerprints(data), fitted)
    if known.any():
        first = data.obs_names[int(known.argmax())]
        raise ValueError(
            f"{known.sum()} of the {len(data)} cells to check were used to fit {directory}, for "
            f"instance {first!r}; held-out cells must be new to the model."
        )
