"""Many seeded tasks at once, with the same bits whatever runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed

Item = TypeVar("Item")
Value = TypeVar("Value")

# torch's generators belong to the process: tasks in threads of one process would mix their random
# numbers, so they wait for each other. Processes (loky, Dask, Ray) do run side by side.
_GENERATORS = threading.Lock()
_thread = threading.local()  # ``busy`` in a thread that runs a task


def seeded_map(
    function: Callable[[Item, int], Value],
    items: Iterable[Item],
    *,
    seed: int,
    n_jobs: int | None = None,
) -> list[Value]:
    """Apply ``function(item, seed of the item)`` to all items through ``joblib.Parallel``.

    A task finds torch's generators seeded with its seed, for functions that use them without
    seeding them, and what it does to them is undone.

    Parameters
    ----------
    function
        Depends on its arguments alone; picklable where the backend uses processes.
    items
        What the tasks are about.
    seed
        Seed from which those of the tasks are spawned.
    n_jobs
        Tasks at a time, as in ``joblib.Parallel``; ``joblib.parallel_config`` chooses the backend.

    Returns
    -------
    list
        Values in the order of the items.
    """
    chosen = list(items)
    tasks = zip(chosen, spawn_seeds(seed, len(chosen)), strict=True)
    if getattr(_thread, "busy", False):  # threads of a task would wait for the task
        return [_seeded(function, *task) for task in tasks]
    return list(Parallel(n_jobs=n_jobs)(delayed(_alone)(function, *task) for task in tasks))


def spawn_seeds(seed: int, n: int) -> list[int]:
    """Independent seeds of 32 bits for ``n`` tasks."""
    children = np.random.SeedSequence(seed).spawn(n)
    return [int(child.generate_state(1)[0]) for child in children]


def _alone(function: Callable[[Item, int], Value], item: Item, seed: int) -> Value:
    with _GENERATORS:
        _thread.busy = True
        try:
            return _seeded(function, item, seed)
        finally:
            _thread.busy = False


def _seeded(function: Callable[[Item, int], Value], item: Item, seed: int) -> Value:
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return function(item, seed)
