"""The two by two table of a paired comparison: which images each network recognises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Flags = Tensor | np.ndarray | Sequence[bool]


class Cells(NamedTuple):
    """Images by what the network and its proxy make of them.

    Parameters
    ----------
    both
        Images that both recognise.
    network_only
        Images that only the network recognises: lost.
    proxy_only
        Images that only the proxy recognises: gained.
    neither
        Images that none recognises.
    """

    both: int
    network_only: int
    proxy_only: int
    neither: int

    @property
    def n(self) -> int:
        """Number of images."""
        return sum(self)

    @property
    def n_discordant(self) -> int:
        """Images on which network and proxy differ."""
        return self.network_only + self.proxy_only

    @property
    def difference(self) -> float:
        """Accuracy of the proxy minus accuracy of the network."""
        return (self.proxy_only - self.network_only) / self.n

    @property
    def discordance(self) -> float:
        """Share of images on which they differ; at least the absolute difference."""
        return self.n_discordant / self.n

    @property
    def swapped(self) -> Cells:
        """The same with network and proxy exchanged."""
        return Cells(self.both, self.proxy_only, self.network_only, self.neither)

    def checked(self) -> Cells:
        """Itself, after a check that these are counts and that there is an image."""
        for name, count in zip(self._fields, self, strict=True):
            if count < 0 or count != int(count):
                raise ValueError(f"{name} must be a count, got {count}.")
        if self.n == 0:
            raise ValueError("there is no image to compare.")
        return Cells(*map(int, self))


def count_cells(correct_network: Flags, correct_proxy: Flags) -> Cells:
    """Count the table from which images are recognised, (N,) each and in the same order.

    Raises
    ------
    ValueError
        If the two differ in length, are empty, or hold anything but true and false.
    """
    network = flags(correct_network, "correct_network")
    proxy = flags(correct_proxy, "correct_proxy")
    if network.shape != proxy.shape or network.ndim != 1:
        raise ValueError(
            "correct_network and correct_proxy must be vectors of the same images, got shapes "
            f"{network.shape} and {proxy.shape}."
        )
    gained, lost = int((proxy & ~network).sum()), int((network & ~proxy).sum())
    both = int((network & proxy).sum())
    return Cells(both, lost, gained, len(network) - both - lost - gained).checked()


def flags(values: Any, name: str) -> np.ndarray:
    """True and false of any array, as booleans."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must be true or false for each image, got other values.")
    return array.astype(bool)


def numbers(values: Any, name: str) -> Tensor:
    """Finite numbers of any array, in double precision on the CPU."""
    if not isinstance(values, Tensor):  # lists of floats keep their double precision
        values = torch.from_numpy(np.array(values, dtype=np.float64))
    tensor = values.detach().cpu().double()
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite.")
    return tensor
