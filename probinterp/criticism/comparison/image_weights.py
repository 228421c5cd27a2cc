"""Bootstrap weights of images: how often each is drawn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK_ENTRIES = 4_000_000  # of a weight matrix held at a time: 32 MB


def image_weights(
    n_images: int, n_boot: int, seed: int, *, chunk_entries: int = CHUNK_ENTRIES
) -> Iterator[Tensor]:
    """Multinomial weights in chunks, (W, N) in double precision, whose rows add up to N.

    The chunk size does not change the weights, so that everything which is resampled with the same
    seed and number of images is resampled together.
    """
    if n_images < 2:
        raise ValueError(f"a bootstrap needs at least 2 images, got {n_images}.")
    if n_boot < 1:
        raise ValueError(f"n_boot must be at least 1, got {n_boot}.")
    generator = np.random.default_rng(seed)
    rows = max(1, chunk_entries // n_images)
    for start in range(0, n_boot, rows):
        size = min(rows, n_boot - start)
        drawn = generator.integers(n_images, size=(size, n_images))
        drawn += n_images * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_images)
        yield torch.from_numpy(counts.reshape(size, n_images)).double()


def percentiles(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Ends of the percentile interval of draws, along their first axis."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)
    low, high = torch.quantile(draws, tails, dim=0)
    return low, high
