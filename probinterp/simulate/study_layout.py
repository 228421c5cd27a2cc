"""Sizes, blocks and random streams of simulated studies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARED = -1
TRUTH, DATA, MORE, MOMENTS = range(4)


def per_study(
    value: int | Sequence[int], n_studies: int, name: str, *, least: int = 0
) -> tuple[int, ...]:
    """One number for each study, given as such or as one for all.

    Raises
    ------
    ValueError
        If the length is not M or a number lies below ``least``.
    """
    if not isinstance(n_studies, int) or n_studies < 1:
        raise ValueError(f"n_studies must be a positive integer, got {n_studies!r}.")
    numbers = (value,) * n_studies if isinstance(value, int) else tuple(value)
    if len(numbers) != n_studies:
        raise ValueError(
            f"{name} must be a number or one for each of {n_studies} studies, got {len(numbers)}."
        )
    if any(number < least for number in numbers):
        raise ValueError(f"{name} must be at least {least} in every study, got {list(numbers)}.")
    return numbers


def block_and_gate(
    n_shared: int, n_specific: int | Sequence[int], n_studies: int
) -> tuple[Tensor, Tensor]:
    """Block of every factor, (K,), -1 for shared; and which factors a study has, (M, K).

    Raises
    ------
    ValueError
        If there is no factor, a number is negative, or ``n_specific`` has another length than M.
    """
    sizes = per_study(n_specific, n_studies, "n_specific")
    if n_shared < 0 or n_shared + sum(sizes) == 0:
        raise ValueError(
            f"there must be at least one factor, got n_shared={n_shared} and "
            f"n_specific={list(sizes)}."
        )
    counts = torch.tensor([n_shared, *sizes])
    block = torch.repeat_interleave(torch.arange(SHARED, n_studies), counts)
    return block, (block == SHARED) | (block == torch.arange(n_studies).unsqueeze(1))


def stream(seed: int, number: int) -> torch.Generator:
    """One of several independent generators of a seed, so that no use repeats another's numbers."""
    master = torch.Generator().manual_seed(seed)
    derived = torch.randint(2**62, (number + 1,), generator=master)[number]
    return torch.Generator().manual_seed(int(derived))


def signed_uniform(
    shape: tuple[int, ...], low: float, high: float, source: torch.Generator
) -> Tensor:
    """Numbers of uniform size between ``low`` and ``high`` and random sign."""
    size = low + (high - low) * torch.rand(shape, generator=source)
    return size * (2.0 * torch.randint(0, 2, shape, generator=source) - 1)
