"""Models on disk: a directory of safetensors and JSON, never pickle."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from probinterp.configuration import construct
from probinterp.inference.history import EpochRecord, FitHistory
from probinterp.inference.storage import read_tensors, write_atomically, write_tensors
from probinterp.models.base import ProbabilisticModel
from probinterp.version import __version__

FORMAT = 1
PARAMS, CONFIG, HISTORY = "params.safetensors", "config.json", "history.csv"


def save(
    model: ProbabilisticModel,
    directory: str | Path,
    history: FitHistory | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a model as ``params.safetensors``, ``config.json`` and ``history.csv``.

    The directory appears complete or not at all. ``config.json`` holds the class, the arguments
    of its constructor, the format and package version, the settings of the fit and a checksum of
    the parameters.

    Parameters
    ----------
    model
        Any model of this package, or one of the user's own that derives from
        :class:`ProbabilisticModel` and has a constructor with plain JSON values.
    directory
        Where to write; its parent must exist.
    history
        What :func:`fit` returned.
    overwrite
        Replace a model that is there already.

    Raises
    ------
    FileExistsError
        If ``directory`` exists and ``overwrite`` is False.
    TypeError
        If an argument of the constructor cannot be written as JSON.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise FileExistsError(f"{directory} exists; pass overwrite=True to replace it.")
    if directory.exists() and not (directory / CONFIG).is_file():
        raise FileExistsError(f"{directory} exists and is not a saved model: not replaced.")
    configuration = json.dumps(_checked(model.configuration, type(model).__name__))
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(temporary, model, configuration, history)
        _swap(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def load(directory: str | Path) -> ProbabilisticModel:
    """Make a model again that :func:`save` wrote; it is on the CPU and in evaluation mode.

    Classes are found by name among those that derive from :class:`ProbabilisticModel`; a class
    of the user's own must have been imported before.

    Raises
    ------
    FileNotFoundError
        If there is no saved model.
    ValueError
        If a file is damaged, of a newer format, or names an unknown class.
    """
    directory = Path(directory)
    if not directory.exists() and _backup(directory).exists():
        directory = _backup(directory)  # a replacement was interrupted between its two renames
    config = read_config(directory)
    params = directory / PARAMS
    if not params.is_file() or _checksum(params) != config["checksum"]:
        raise ValueError(f"{params} is missing or differs from the checksum in {CONFIG}.")
    tensors, _ = read_tensors(params)
    with torch.random.fork_rng(devices=[]):
        model = _made_again(config["model"])
    if not isinstance(model, ProbabilisticModel):
        raise ValueError(f"{directory / CONFIG} names {type(model).__name__}, not a model.")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{params} does not fit the model of {CONFIG}: {error}") from error
    return model.eval()


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read ``config.json`` of a saved model: class, arguments, versions and settings of the fit."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {directory} is not a saved model.")
    try:
        config = json.loads(path.read_text())
        version = config["format"]
        config["model"]["class"], config["checksum"]  # noqa: B018
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version!r}; this version of probinterp reads {FORMAT}."
        )
    return config


def read_history(directory: str | Path) -> FitHistory:
    """Read the history that was saved with a model.

    Raises
    ------
    FileNotFoundError
        If the model was saved without one.
    ValueError
        If a file is damaged.
    """
    path, config = Path(directory) / HISTORY, read_config(directory)
    if not path.is_file() or "fit" not in config:
        raise FileNotFoundError(f"{path} not found: the model was saved without its history.")
    try:
        with path.open(newline="") as file:
            records = tuple(_record(row) for row in csv.DictReader(file))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    try:
        return FitHistory(records, **config["fit"])
    except TypeError as error:
        raise ValueError(f"{path.with_name(CONFIG)} is damaged: {error}") from error


def _record(row: dict[str, str]) -> EpochRecord:
    values = {name: float(value) if value else None for name, value in row.items()}
    return EpochRecord(**(values | {"epoch": int(row["epoch"])}))  # type: ignore[arg-type]


def _write(
    folder: Path, model: ProbabilisticModel, configuration: str, history: FitHistory | None
) -> None:
    write_tensors(folder / PARAMS, model.state_dict(), {"format": FORMAT})
    config = {
        "format": FORMAT,
        "version": __version__,
        "model": json.loads(configuration),
        "checksum": _checksum(folder / PARAMS),
    }
    if history is not None:
        config["fit"] = {
            "seed": history.seed,
            "stopped": history.stopped,
            "best_epoch": history.best_epoch,
            "settings": history.settings,
        }
        write_atomically(folder / HISTORY, history.to_frame().to_csv)
    text = json.dumps(config, indent=2)
    write_atomically(folder / CONFIG, lambda path: path.write_text(text))


def _swap(new: Path, target: Path) -> None:
    backup = _backup(target)
    shutil.rmtree(backup, ignore_errors=True)
    if target.exists():
        target.rename(backup)
    new.rename(target)
    shutil.rmtree(backup, ignore_errors=True)


def _backup(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.replaced")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(value: Any, where: str) -> Any:
    """``value`` if it is made of plain JSON types; a TypeError that names the argument if not."""
    if isinstance(value, dict):
        return {key: _checked(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"cannot save {where}: expected a number, string, list or configured object, "
        f"got {type(value).__name__}."
    )


def _made_again(described: Any) -> Any:
    try:
        return construct(described)
    except (LookupError, TypeError) as error:
        raise ValueError(f"the saved model cannot be made again: {error}") from error
