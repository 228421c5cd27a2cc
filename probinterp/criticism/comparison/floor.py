"""How often a network disagrees with itself: below that, discordance means nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv
from torch import Tensor


class Floor(NamedTuple):
    """Disagreement of two runs of the same network.

    Parameters
    ----------
    n
        Number of images.
    n_discordant
        Images on which the runs differ.
    upper
        Upper 95 % bound of the share (Clopper and Pearson).
    """

    n: int
    n_discordant: int
    upper: float

    @property
    def discordance(self) -> float:
        """Share of images on which the runs differ."""
        return self.n_discordant / self.n

    def __str__(self) -> str:
        return (
            f"The network differs from itself on {self.n_discordant:,} of {self.n:,} images "
            f"({100 * self.discordance:.2g} %)."
        )


def self_discordance(first: Any, second: Any) -> Floor:
    """Compare two runs of one network, such as with two batch sizes.

    Parameters
    ----------
    first, second
        Predicted classes, or whether each image is recognised, (N,) each.

    Raises
    ------
    ValueError
        If they are no vectors of the same length.
    """
    a, b = (np.asarray(v.cpu() if isinstance(v, Tensor) else v) for v in (first, second))
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            f"two runs must give vectors of the same images, got shapes {a.shape} and {b.shape}."
        )
    n, k = len(a), int((a != b).sum())
    upper = 1.0 if k == n else float(betaincinv(k + 1, n - k, 0.95))
    return Floor(n, k, upper)
