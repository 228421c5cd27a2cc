"""One pass of a vision tower over images, into memory or into a folder."""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from probinterp.version import __version__
from probinterp.vision.activation_data import TOKEN_TYPES
from probinterp.vision.activation_shards import (
    Arrays,
    ManifestMismatchError,
    ShardFolder,
    array_shapes,
    encode,
    fill,
)
from probinterp.vision.activation_sources import stack_layers, to_tower
from probinterp.vision.capture import capturing, evaluating, verify_hooks
from probinterp.vision.hashes import ImageHash, tensor_hash
from probinterp.vision.image_source import ImageSource, image_batches
from probinterp.vision.towers import Tower

FORMAT = 1
_SHARD_BYTES = 2**28
_FIELDS = {"inputs": ("inputs",), "both": ("inputs", "outputs")}


@dataclass
class Recording:
    """One pass of a tower over images."""

    tower: Tower
    source: ImageSource
    layers: tuple[int, ...]
    batch_size: int
    num_workers: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        self.hash = ImageHash()

    def verify(self) -> None:
        """Check the hooks on the first two images."""
        first = range(min(2, len(self.source)))
        size = self.tower.image_size
        pixels, _ = next(image_batches(self.source, first, len(first), image_size=size))
        verify_hooks(self.tower, to_tower(self.tower, pixels))

    def parts(
        self, plan: dict[str, Any], span: range, token_index: Tensor, bar: tqdm
    ) -> Iterator[Arrays]:
        """Arrays of one batch of images after the other."""
        self.hash = ImageHash()
        fields = plan["fields"]
        batches = image_batches(
            self.source,
            span,
            self.batch_size,
            image_size=self.tower.image_size,
            num_workers=self.num_workers,
        )
        outputs = "outputs" in fields
        with capturing(self.tower, self.layers, outputs=outputs) as captured:
            for pixels, labels in batches:
                with evaluating(self.tower.visual):
                    self.tower.encode_image(to_tower(self.tower, pixels))
                arrays: Arrays = {"labels": labels.numpy()}
                for name in fields:
                    values = stack_layers(getattr(captured, name), self.layers, token_index)
                    arrays |= encode(name, values, plan["dtype"])
                captured.clear()
                self.hash.add(pixels)
                bar.update(len(pixels))
                yield arrays

    def in_memory(self, plan: dict[str, Any], token_index: Tensor, bar: tqdm) -> Arrays:
        """All images in one set of arrays."""
        self.verify()
        shapes = array_shapes(plan, len(self.source))
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in shapes.items()}
        fill(arrays, self.parts(plan, range(len(self.source)), token_index, bar))
        return arrays

    def to_folder(self, folder: ShardFolder, token_index: Tensor, bar: tqdm) -> None:
        """Write the shards that are not there yet, then the manifest."""
        known = [folder.shard(number) for number in range(len(folder.spans()))]
        bar.initial = bar.n = sum(about["images"] for about in known if about is not None)
        self._require_same_images(folder)
        if folder.complete:
            return
        self.verify()
        for number, (start, stop) in enumerate(folder.spans()):
            if known[number] is None:
                parts = self.parts(folder.plan, range(start, stop), token_index, bar)
                folder.write(number, parts, functools.partial(self._about_images, start, stop))
        folder.finish()

    def _about_images(self, start: int, stop: int) -> dict[str, Any]:
        """Hashes by which the images that passed last are known again."""
        return {
            "some_images_sha256": {str(i): self._hash_of(i) for i in _few(start, stop)},
            "images_sha256": self.hash.hexdigest(),
        }

    def _hash_of(self, i: int) -> str:
        return tensor_hash(self.source[i][0])

    def _require_same_images(self, folder: ShardFolder) -> None:
        """Look at the first, middle and last image of each shard that is there."""
        for number, _ in enumerate(folder.spans()):
            about = folder.shard(number)
            if about is None:
                continue
            for i, known in about["some_images_sha256"].items():
                if self._hash_of(int(i)) != known:
                    raise ManifestMismatchError(
                        f"image {i} is not the one that {folder.folder} was recorded from; "
                        "record into another folder."
                    )


def _few(start: int, stop: int) -> list[int]:
    """First, middle and last number of a range."""
    return sorted({start, (start + stop - 1) // 2, stop - 1})


def chosen_tokens(tower: Tower, tokens: str | Sequence[str]) -> Tensor:
    """Positions, among the tower's, of the tokens of the types named."""
    named = [tokens] if isinstance(tokens, str) else list(tokens)
    names = ["cls", "patch"] if named == ["all"] else named
    unknown = [name for name in names if name not in TOKEN_TYPES]
    if unknown or not names:
        raise ValueError(
            f"tokens must be 'all' or some of {', '.join(TOKEN_TYPES)}, got {tokens!r}."
        )
    types = tower.token_types()
    chosen = torch.isin(types, torch.tensor([TOKEN_TYPES[name] for name in names]))
    if not chosen.any():
        raise ValueError(
            f"the tower has no {' or '.join(names)} tokens: {tower.n_class_tokens} class tokens "
            f"and {tower.n_prefix_tokens - tower.n_class_tokens} registers."
        )
    return chosen.nonzero().flatten()


def make_plan(
    recording: Recording,
    tokens: str | Sequence[str],
    token_index: Tensor,
    store: str,
    dtype: str,
    shard_images: int | None,
) -> dict[str, Any]:
    """What will be recorded, as plain JSON: the manifest but for the shards."""
    if store not in _FIELDS:
        raise ValueError(f"store must be 'inputs' or 'both', got {store!r}.")
    tower, n_tokens = recording.tower, len(token_index)
    shape = [len(recording.source), len(recording.layers), n_tokens, tower.width]
    labels = getattr(recording.source, "labels", None)
    bytes_each = 4 * len(_FIELDS[store]) * math.prod(shape[1:])
    return {
        "format": FORMAT,
        "versions": _versions(),
        "backbone": tower.record(),
        "layers": list(recording.layers),
        "tokens": tokens if isinstance(tokens, str) else list(tokens),
        "token_index": token_index.tolist(),
        "token_type": tower.token_types()[token_index].tolist(),
        "store": store,
        "fields": list(_FIELDS[store]),
        "dtype": dtype,
        "batch_size": recording.batch_size,
        "labels_sha256": None if labels is None else tensor_hash(torch.as_tensor(labels)),
        "shape": shape,
        "shard_images": shard_images or max(1, _SHARD_BYTES // bytes_each),
    }


def _versions() -> dict[str, str]:
    versions = {"probinterp": __version__, "torch": str(torch.__version__)}
    for package in ("open_clip_torch", "timm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
