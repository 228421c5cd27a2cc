"""Images from arrays, data sets and folders, in one form that can be read from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from probinterp.vision.extra import pil_image_module

NO_LABEL = -1
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageSource(Protocol):
    """Preprocessed images by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Image (3, H, W) and its label, -1 where it has none."""


def image_source(
    images: Any,
    *,
    preprocess: Callable[[Any], Tensor] | None = None,
    labels: Tensor | Sequence[int] | None = None,
) -> ImageSource:
    """Read images from whatever holds them.

    Parameters
    ----------
    images
        A float tensor or array (N, 3, H, W) that is preprocessed already; a folder of pictures,
        with subfolders as classes or without; or anything with ``len`` whose entries are images
        or pairs of image and label, such as the data sets of torchvision.
    preprocess
        Picture to tensor (3, H, W). Needed for folders; otherwise entries that are tensors are
        taken as they are.
    labels
        Class of each image, (N,); default: those that come with the images.

    Raises
    ------
    TypeError
        If the images are of no such kind, such as a loader, whose order cannot be known.
    ValueError
        If shapes or numbers do not fit.
    """
    source: ImageSource
    if isinstance(images, Tensor | np.ndarray):
        source = ArrayImages(torch.as_tensor(images))
    elif isinstance(images, str | Path):
        source = FolderImages(Path(images), preprocess)
    elif isinstance(images, DataLoader):
        raise TypeError("images must be readable by number; pass the loader's dataset instead.")
    elif hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        source = DatasetImages(images, preprocess)
    else:
        raise TypeError(
            "images must be an array (N, 3, H, W), a folder or a data set with len() and [i], "
            f"got {type(images).__name__}."
        )
    if len(source) == 0:
        raise ValueError("there are no images.")
    return source if labels is None else _Labelled(source, labels)


class ArrayImages:
    """Preprocessed images in memory, (N, 3, H, W)."""

    def __init__(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ValueError(
                "an array of images must be preprocessed: floats of shape (N, 3, H, W), got "
                f"{pixels.dtype} with shape {tuple(pixels.shape)}."
            )
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.pixels[i], NO_LABEL


class DatasetImages:
    """A data set of images, or of pairs of image and label."""

    def __init__(self, dataset: Any, preprocess: Callable[[Any], Tensor] | None) -> None:
        self.dataset, self.preprocess = dataset, preprocess

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        entry = self.dataset[i]
        image, label = entry[:2] if isinstance(entry, tuple | list) else (entry, NO_LABEL)
        if not isinstance(image, Tensor):
            if self.preprocess is None:
                raise TypeError(
                    f"image {i} is a {type(image).__name__}, not a tensor: give preprocess=, or "
                    "a data set that transforms its pictures."
                )
            image = self.preprocess(image)
        return image, int(label)


class FolderImages:
    """Pictures of a folder in the order of their paths; subfolders are classes."""

    def __init__(self, folder: Path, preprocess: Callable[[Any], Tensor] | None) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder.")
        if preprocess is None:
            raise ValueError("pictures of a folder need preprocess=, such as load_clip returns.")
        self.preprocess = preprocess
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ValueError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}).")
        inside = [path.relative_to(folder).parts for path in self.paths]
        self.classes = sorted({parts[0] for parts in inside if len(parts) > 1})
        number = {name: j for j, name in enumerate(self.classes)}
        self.labels = [number[p[0]] if len(p) > 1 else NO_LABEL for p in inside]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        try:
            with pil_image_module().open(self.paths[i]) as picture:
                pixels = picture.convert("RGB")
        except OSError as error:
            raise ValueError(f"{self.paths[i]} cannot be read as a picture: {error}") from error
        return self.preprocess(pixels), self.labels[i]


class _Labelled:
    """Images with other labels than their own."""

    def __init__(self, source: ImageSource, labels: Tensor | Sequence[int]) -> None:
        self.source, self.labels = source, torch.as_tensor(labels)
        if self.labels.shape != (len(source),) or self.labels.is_floating_point():
            raise ValueError(
                f"labels must be {len(source)} integers, one per image, got "
                f"{self.labels.dtype} with shape {tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.source[i][0], int(self.labels[i])


class _Chosen:
    """Images ``index`` of a source, for a loader and its workers."""

    def __init__(self, source: ImageSource, index: Sequence[int]) -> None:
        self.source, self.index = source, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.source[self.index[i]]


def image_batches(
    source: ImageSource,
    index: Sequence[int],
    batch_size: int,
    *,
    image_size: tuple[int, int] | None = None,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``index`` in batches (B, 3, H, W), with labels (B,), -1 where there are none.

    Parameters
    ----------
    source
        The images.
    index
        Which, in this order.
    batch_size
        Images in one batch.
    image_size
        Height and width to insist on; None accepts any.
    num_workers
        Processes that read and preprocess ahead.

    Raises
    ------
    ValueError
        If an image has another size, or a pixel that is not a finite number.
    """
    chosen: Any = _Chosen(source, index)
    loader: DataLoader[Any] = DataLoader(chosen, batch_size, num_workers=num_workers)
    place = 0
    for pixels, labels in loader:
        _check(pixels, index[place : place + len(pixels)], image_size)
        place += len(pixels)
        yield pixels, labels


def _check(pixels: Tensor, index: Sequence[int], image_size: tuple[int, int] | None) -> None:
    expected = (3, *(image_size or pixels.shape[-2:]))
    if pixels.shape[1:] != expected:
        raise ValueError(
            f"images have shape {tuple(pixels.shape[1:])}, the tower expects {expected}: "
            "preprocess them, such as with what load_clip returns."
        )
    finite = pixels.flatten(1).isfinite().all(1)
    if not finite.all():
        raise ValueError(f"image {index[int((~finite).nonzero()[0])]} has NaN or infinite pixels.")
