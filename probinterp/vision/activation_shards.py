"""Activations as arrays: how numbers are stored, and one folder of memory-mapped shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probinterp.inference.storage import write_atomically

MANIFEST = "manifest.json"
PLAN = "plan.json"
STORED = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # bit patterns: numpy has no such type
    "int8": np.dtype(np.int8),
}
"""Types that activations may be stored in, and the type of the array on disk."""

Arrays = dict[str, np.ndarray]


class ManifestMismatchError(ValueError):
    """A folder holds a recording of something else than what was asked for."""


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a type that activations may be stored in."""
    name = str(dtype).removeprefix("torch.")
    if name not in STORED:
        raise ValueError(f"dtype must be one of {', '.join(STORED)}, got {name}.")
    return name


def array_shapes(plan: dict[str, Any], n_images: int) -> dict[str, tuple[np.dtype, tuple]]:
    """Type and shape of each array that holds ``n_images`` images of a recording."""
    shape = (n_images, *plan["shape"][1:])
    arrays = {name: (STORED[plan["dtype"]], shape) for name in plan["fields"]}
    if plan["dtype"] == "int8":
        scale = np.dtype(np.float32), shape[:-1]
        arrays |= {f"{name}_scale": scale for name in plan["fields"]}
    return arrays | {"labels": (np.dtype(np.int64), shape[:1])}


def fill(arrays: Mapping[str, np.ndarray], parts: Iterator[Arrays]) -> None:
    """Put one part after the other into arrays that have room for all."""
    place = 0
    for part in parts:
        length = len(part["labels"])
        for name, values in part.items():
            arrays[name][place : place + length] = values
        place += length
    assert place == len(arrays["labels"])


def encode(name: str, values: Tensor, dtype: str) -> Arrays:
    """Values (..., D) as they are stored; 8-bit integers with one scale for each token.

    Raises
    ------
    ValueError
        If a value does not fit the type.
    """
    values = values.float().cpu()
    if not values.isfinite().all():
        raise ValueError(f"{name} of the MLPs are not finite numbers.")
    if dtype == "int8":
        scale = values.abs().amax(-1) / 127
        steps = values / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        return {name: steps.round().to(torch.int8).numpy(), f"{name}_scale": scale.numpy()}
    if dtype == "bfloat16":
        return {name: values.bfloat16().view(torch.uint16).numpy()}
    if dtype == "float16":
        if values.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"{name} of the MLPs exceed float16; store them as bfloat16.")
        return {name: values.half().numpy()}
    return {name: values.numpy()}


def decode(arrays: Arrays, name: str, dtype: str, where: Any) -> Tensor:
    """Entries ``where`` of a stored field as float32."""
    values = torch.from_numpy(np.array(arrays[name][where]))
    if dtype == "int8":
        scale = torch.from_numpy(np.array(arrays[f"{name}_scale"][where]))
        return values.float() * scale.unsqueeze(-1)
    return (values.view(torch.bfloat16) if dtype == "bfloat16" else values).float()


class ShardFolder:
    """A folder of ``.npy`` files that is complete when ``manifest.json`` is there.

    A shard counts when its own JSON file, written last, is there; an interrupted recording goes
    on after the last complete one.

    Parameters
    ----------
    folder
        Where to write.
    plan
        What is recorded, as plain JSON, with ``shape`` (images, L, T, D), ``fields``, ``dtype``
        and ``shard_images``.

    Raises
    ------
    ManifestMismatchError
        If the folder holds anything else than (a part of) this very recording.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        found = _read_json(folder / MANIFEST) or _read_json(folder / PLAN)
        if found is not None:
            _require_same(folder, plan, found)
        elif any(folder.iterdir()):
            raise ManifestMismatchError(f"{folder} is not empty and holds no recording.")
        else:
            _write_json(folder / PLAN, plan)

    @property
    def complete(self) -> bool:
        """Whether the manifest is there."""
        return (self.folder / MANIFEST).is_file()

    def spans(self) -> list[tuple[int, int]]:
        """First image and the one after the last of each shard."""
        n, size = self.plan["shape"][0], self.plan["shard_images"]
        return [(start, min(start + size, n)) for start in range(0, n, size)]

    def shard(self, number: int) -> dict[str, Any] | None:
        """What is known of a complete shard; None where it is not complete."""
        return _read_json(self.folder / f"shard-{number:05d}.json")

    def write(self, number: int, parts: Iterator[Arrays], about: Callable[[], Any]) -> None:
        """Fill a shard part by part, then say that it is complete."""
        start, stop = self.spans()[number]
        paths = {name: self._path(name, number) for name in array_shapes(self.plan, 0)}
        arrays = {
            name: np.lib.format.open_memmap(paths[name].with_suffix(".part"), "w+", dtype, shape)
            for name, (dtype, shape) in array_shapes(self.plan, stop - start).items()
        }
        fill(arrays, parts)
        for name, path in paths.items():
            arrays[name].flush()
            path.with_suffix(".part").replace(path)
        _write_json(self.folder / f"shard-{number:05d}.json", {"images": stop - start} | about())

    def finish(self) -> None:
        """Write the manifest: the recording is complete."""
        shards = [self.shard(number) for number in range(len(self.spans()))]
        assert all(shards)
        _write_json(self.folder / MANIFEST, self.plan | {"shards": shards})
        (self.folder / PLAN).unlink(missing_ok=True)

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:05d}.npy"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a complete recording.

    Raises
    ------
    FileNotFoundError
        If there is none, with a hint where the recording was interrupted.
    """
    manifest = _read_json(folder / MANIFEST)
    if manifest is None:
        if (folder / PLAN).is_file():
            raise FileNotFoundError(
                f"the recording in {folder} was interrupted; call record_activations with the "
                "same arguments to go on."
            )
        raise FileNotFoundError(f"{folder / MANIFEST} not found.")
    return manifest


def open_shards(folder: Path, manifest: dict[str, Any]) -> list[Arrays]:
    """Arrays of each shard, mapped into memory, not read.

    Raises
    ------
    ValueError
        If a file is missing, damaged, or of another shape than the manifest says.
    """
    shards: list[Arrays] = []
    for number, about in enumerate(manifest["shards"]):
        shard: Arrays = {}
        for name, (dtype, expected) in array_shapes(manifest, about["images"]).items():
            path = folder / f"{name}-{number:05d}.npy"
            try:
                shard[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} is missing or damaged: {error}") from error
            if shard[name].dtype != dtype or shard[name].shape != expected:
                raise ValueError(
                    f"{path} has {shard[name].dtype} {shard[name].shape}, the manifest says "
                    f"{dtype} {expected}."
                )
        shards.append(shard)
    return shards


def _require_same(folder: Path, plan: dict[str, Any], found: dict[str, Any]) -> None:
    # these may change between an interruption and its continuation
    keys = plan.keys() - {"versions", "batch_size"}
    differences = [
        f"{key} is {_brief(found.get(key))} there, {_brief(plan[key])} now"
        for key in sorted(keys)
        if found.get(key) != plan[key]
    ]
    if differences:
        raise ManifestMismatchError(
            f"{folder} holds another recording: {'; '.join(differences)}. "
            "Record into another folder."
        )


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text))
