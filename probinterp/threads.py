"""Threads that each compute on one core: parallel over chunks instead of inside their products.

The products of a chunk that fits the cache are too small to be shared by several cores: a thread
for each half of the chunks is faster than two cores for each product, and scales further.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Value = TypeVar("Value")

_pools: dict[int, ThreadPoolExecutor] = {}
_making_a_pool = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def run_in_threads(tasks: Sequence[Callable[[], Value]]) -> list[Value]:
    """Run tasks at the same time, each on one core; one task runs in the calling thread.

    Grad mode and autocast of the caller do not reach the threads: tasks set their own.

    Parameters
    ----------
    tasks
        Functions without arguments that do not wait for each other.

    Returns
    -------
    list
        What they returned, in their order.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    pool = _pool(len(tasks))
    return [future.result() for future in [pool.submit(task) for task in tasks]]


def _pool(n_threads: int) -> ThreadPoolExecutor:
    with _making_a_pool:
        if n_threads not in _pools:
            _pools[n_threads] = _new_pool(n_threads)
        return _pools[n_threads]


def _new_pool(n_threads: int) -> ThreadPoolExecutor:
    n_outside = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_threads, "probinterp", _use_one_core)
    started = threading.Barrier(n_threads)
    for future in [pool.submit(started.wait) for _ in range(n_threads)]:
        future.result()
    torch.set_num_threads(n_outside)
    return pool


def _use_one_core() -> None:
    # The setting is each thread's own, but the latest one is what a new thread starts from, on its
    # first call into torch: make that call now, while the latest one is this.
    torch.set_num_threads(1)
    torch.get_num_threads()
