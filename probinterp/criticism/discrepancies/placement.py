"""Constants that follow the data from device to device."""

from __future__ import annotations

import torch
from torch import Tensor


class Placed:
    """A constant tensor with one copy per device and dtype, so that no call waits for a copy.

    Parameters
    ----------
    value
        The constant. Integers keep their dtype, floating point numbers take that of the data.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def beside(self, x: Tensor) -> Tensor:
        """The constant on the device of ``x``."""
        dtype = x.dtype if self.value.is_floating_point() else self.value.dtype
        place = (x.device, dtype)
        if place not in self._copies:
            self._copies[place] = self.value.to(device=x.device, dtype=dtype)
        return self._copies[place]
