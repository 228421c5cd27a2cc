"""What a fitted model remembers of the data it was fitted to, as one JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from probinterp.genomics.expression import ExpressionData
from probinterp.genomics.fitted_units import save_fitted_units
from probinterp.genomics.load_report import LoadReport
from probinterp.inference.data import ArrayData
from probinterp.inference.storage import write_atomically

FILE = "genes.json"


def save_reference(data: ExpressionData, directory: str | Path) -> Path:
    """Write names, library size, reading options and fingerprints of the cells.

    Parameters
    ----------
    data
        Training data.
    directory
        Directory of the saved model.
    """
    described = {
        "var_names": list(data.var_names),
        "study_names": data.study_names,
        "nuisance_names": data.nuisance_names,
        "median_library_size": data.median_library_size,
        "report": asdict(data.report),
    }
    path = Path(directory) / FILE
    text = json.dumps(described, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text))
    save_fitted_units(data, directory)
    return path


def load_reference(directory: str | Path) -> ExpressionData:
    """Read what :func:`save_reference` wrote, as data without cells for ``like=``.

    Raises
    ------
    FileNotFoundError
        If the model was not saved with its genes.
    ValueError
        If the file is damaged.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: the model was saved without its genes.")
    try:
        described = json.loads(path.read_text())
        pairs = described["report"].items()
        report: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
        studies, batches = described["study_names"], described.get("nuisance_names")
        genes = pd.Index(described["var_names"])
        return ExpressionData(
            ArrayData(torch.empty(0, len(genes))),
            pd.Index([], dtype=object),
            genes,
            None if studies is None else tuple(studies),
            None if described["median_library_size"] is None else np.empty(0),
            described["median_library_size"],
            LoadReport(**report),
            None if batches is None else tuple(batches),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
