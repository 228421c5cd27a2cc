"""Short names of long things: hashes of weights, images, texts and preprocessing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def json_hash(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys; what JSON does not know enters as ``repr``."""
    text = json.dumps(value, sort_keys=True, default=repr, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_hash(tensors: Tensor | Iterable[Tensor]) -> str:
    """SHA-256 of dtypes, shapes and bytes, the same on every device."""
    digest = hashlib.sha256()
    for tensor in [tensors] if isinstance(tensors, Tensor) else tensors:
        _add(digest, tensor)
    return digest.hexdigest()


class ImageHash:
    """SHA-256 of images one after the other, however they come in batches."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, images: Tensor) -> None:
        """Images (B, 3, H, W)."""
        for image in images.detach().cpu():
            _add(self._digest, image)

    def hexdigest(self) -> str:
        """Hash of all images so far."""
        return self._digest.hexdigest()


def weight_hash(module: nn.Module) -> str:
    """SHA-256 of the names and values of all parameters and persistent buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()


def preprocessing_hash(visual: nn.Module) -> str | None:
    """SHA-256 of the ``preprocess_cfg`` that open_clip keeps on a tower; None without one."""
    settings = getattr(visual, "preprocess_cfg", None)
    return json_hash(dict(settings)) if isinstance(settings, Mapping) else None


def _add(digest: Any, tensor: Tensor) -> None:
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().data)
