"""A real CLIP of two small towers that is shipped with the package: handwritten digits."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.vision.backbones import LoadedClip, load_clip
from probinterp.vision.extra import open_clip_module

NAME = "tiny-digits-clip"
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the digit {}", "the number {}", "digit {}")
MEAN, STD = 0.30573, 0.37619
"""Of all pixels of the training images, on the scale 0 to 1."""


class DigitImages(NamedTuple):
    """Images (N, 3, 8, 8), standardised, and their digits (N,), int64."""

    images: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """1,400 images to train on and 397 held out."""

    train: DigitImages
    heldout: DigitImages


def tiny_clip() -> LoadedClip:
    """Network, tokenizer and preprocessing of the CLIP that is shipped with the package.

    Four blocks of width 64 on 8 x 8 pixels (16 patches and a class token), trained on 1,400 of
    scikit-learn's handwritten digits by ``examples/train_tiny_clip.py``.
    """
    register_config()
    return load_clip(NAME, folder() / f"{NAME}.safetensors")


def register_config() -> None:
    """Make ``"tiny-digits-clip"`` known to ``open_clip.create_model``."""
    open_clip = open_clip_module()
    if NAME not in open_clip.list_models():
        open_clip.add_model_config(folder())


def digits() -> Digits:
    r"""Images of scikit-learn's ``load_digits`` as the tiny CLIP expects them.

    Pixels / 16, three equal channels, standardised with :data:`MEAN` and :data:`STD`. Image i is
    held out where :math:`397\,i \bmod 1797 < 397`: evenly over the whole file, so that every
    writer is in both parts.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = torch.from_numpy(loaded.images).float() / 16
    images = ((pixels - MEAN) / STD).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(loaded.target).long()
    heldout = (397 * torch.arange(len(labels))) % 1797 < 397
    parts = (DigitImages(images[part], labels[part]) for part in (~heldout, heldout))
    return Digits(*parts)


def folder() -> Path:
    """Folder of the configuration and the weights, in the package or in the repository."""
    installed = Path(str(importlib.resources.files("probinterp"))) / "data" / "tiny_clip"
    candidates = (installed, installed.parents[2] / "data" / "tiny_clip")
    for candidate in candidates:
        if (candidate / f"{NAME}.json").is_file():
            return candidate
    raise FileNotFoundError(
        f"{NAME}.json is in neither of {[str(c) for c in candidates]}; reinstall the package."
    )
