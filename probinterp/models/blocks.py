"""Columns of multi-study models: a shared block, then one block for each study."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probinterp.models.base import require_positive

SHARED = -1


def blocks_of_columns(n_shared: int, n_specific: int | Sequence[int], n_studies: int) -> Tensor:
    """Block of every column: -1 for shared, m for the block of study m, (K,).

    Parameters
    ----------
    n_shared
        Columns of the shared block.
    n_specific
        Columns of the block of each study: one number for all, or one for each study.
    n_studies
        Number of studies, M.

    Raises
    ------
    ValueError
        If a number is negative, there is no column at all, or ``n_specific`` has another length
        than M.
    """
    require_positive(n_studies=n_studies)
    sizes = [n_specific] * n_studies if isinstance(n_specific, int) else list(n_specific)
    if len(sizes) != n_studies:
        raise ValueError(
            f"n_specific must be a number or one for each of the {n_studies} studies, "
            f"got {len(sizes)}."
        )
    for name, size in [("n_shared", n_shared), *(("n_specific", size) for size in sizes)]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"{name} must be a whole number of columns, got {size!r}.")
    if n_shared + sum(sizes) == 0:
        raise ValueError("a model needs at least one column, got n_shared=0 and n_specific=0.")
    counts = torch.tensor([n_shared, *sizes])
    return torch.repeat_interleave(torch.arange(SHARED, n_studies), counts)


def gates(block: Tensor, n_studies: int) -> Tensor:
    """Which columns a study has, (M + 1, K) boolean; the last row, index -1: shared ones only."""
    study = torch.tensor([*range(n_studies), SHARED], device=block.device)
    return (block == SHARED) | (block == study.unsqueeze(1))
