"""Random states of their own for what runs between the caller's random numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ONE_AT_A_TIME = threading.RLock()
"""Held while Pyro programs run: its handler stack and torch's generators are the process's."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context with its own random state on the CPU and on ``device``; the caller's is kept.

    Threads take turns, see :data:`ONE_AT_A_TIME`, so that each gets the numbers of its seed.
    ``torch.manual_seed`` would seed every device that exists and, where CUDA is not yet in use,
    note a whole traceback for later, which takes longer than small replicates do.
    """
    cuda = [device] if device.type == "cuda" else []
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
