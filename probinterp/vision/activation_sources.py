"""Where the MLP inputs of a token come from: arrays in memory or on disk, or the tower itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from probinterp.vision.activation_shards import Arrays, decode
from probinterp.vision.capture import capturing, evaluating
from probinterp.vision.image_source import ImageSource, image_batches
from probinterp.vision.towers import Tower


class ActivationSource(Protocol):
    """MLP inputs, and outputs where they are kept, of single tokens."""

    by_image: bool
    """Whether the tokens of one image are best read together."""

    def rows(self, image: Tensor, token: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs (N, L, D) and outputs, or None, of tokens ``token`` of images ``image``."""


class ArraySource:
    """Shards of arrays (images, L, T, D), in memory or mapped from files."""

    def __init__(self, shards: Sequence[Arrays], dtype: str, *, by_image: bool) -> None:
        self.shards, self.dtype, self.by_image = shards, dtype, by_image
        starts = np.cumsum([0, *(len(shard["labels"]) for shard in shards)])
        self._starts = torch.from_numpy(starts)

    def rows(self, image: Tensor, token: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs and outputs of tokens; see :class:`ActivationSource`."""
        number = torch.searchsorted(self._starts, image, right=True) - 1
        names = [name for name in ("inputs", "outputs") if name in self.shards[0]]
        _, n_layers, _, width = self.shards[0]["inputs"].shape
        filled = {name: torch.empty(len(image), n_layers, width) for name in names}
        for shard in number.unique().tolist():
            chosen = number == shard
            local = (image[chosen] - self._starts[shard]).numpy()
            where = (local, slice(None), token[chosen].numpy())
            for name in names:
                filled[name][chosen] = decode(self.shards[shard], name, self.dtype, where)
        return filled["inputs"], filled.get("outputs")


class TowerSource:
    """The tower runs on the images whenever their activations are asked for.

    The latest images are kept, because minibatches that follow each other share them.
    """

    by_image = True

    def __init__(
        self,
        tower: Tower,
        images: ImageSource,
        layers: tuple[int, ...],
        tokens: Tensor,
        *,
        batch_size: int,
        kept_images: int,
    ) -> None:
        self.tower, self.images, self.layers, self.tokens = tower, images, layers, tokens
        self.batch_size, self.kept_images = batch_size, kept_images
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def rows(self, image: Tensor, token: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs and outputs of tokens; see :class:`ActivationSource`."""
        wanted, place = image.unique(return_inverse=True)
        found = self._read(wanted.tolist())
        inputs, outputs = (torch.stack([pair[k] for pair in found]) for k in (0, 1))
        return inputs[place, :, token], outputs[place, :, token]

    def _read(self, images: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Inputs and outputs (L, T, D) of each image."""
        found = {i: self._kept[i] for i in images if i in self._kept}
        missing = [i for i in images if i not in found]
        found |= self._run(missing)
        self._kept.update(found)
        for i in images:
            self._kept.move_to_end(i)
        while len(self._kept) > self.kept_images:
            self._kept.popitem(last=False)
        return [found[i] for i in images]

    def _run(self, images: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        if not images:
            return {}
        ran: list[tuple[Tensor, Tensor]] = []
        size = self.tower.image_size
        with evaluating(self.tower.visual), capturing(self.tower, self.layers) as captured:
            for pixels, _ in image_batches(self.images, images, self.batch_size, image_size=size):
                self.tower.encode_image(to_tower(self.tower, pixels))
                seen = (captured.inputs, captured.outputs)
                stacked = [stack_layers(part, self.layers, self.tokens) for part in seen]
                ran += list(zip(*(part.float().cpu() for part in stacked), strict=True))
                captured.clear()
        return dict(zip(images, ran, strict=True))


def to_tower(tower: Tower, pixels: Tensor) -> Tensor:
    """Images on the device and in the type of the tower's weights."""
    return pixels.to(tower.device, tower.image_dtype)


def stack_layers(seen: dict[int, Tensor], layers: Sequence[int], tokens: Tensor) -> Tensor:
    """Captured tensors (images, tokens, D) as (images, L, T, D) of the chosen tokens."""
    return torch.stack([seen[layer][:, tokens.to(seen[layer].device)] for layer in layers], 1)
