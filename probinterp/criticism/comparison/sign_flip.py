"""Sign-flip permutation of images: is the mean of paired differences zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.comparison.cells import numbers

CHUNK_ENTRIES = 4_000_000  # signs held at a time: 32 MB
ROUNDING = 1e-6  # of the sum of sizes; sums that differ by less are equal, in single precision too


class SignFlip(NamedTuple):
    """Mean of paired differences and its permutation p-value.

    Parameters
    ----------
    mean
        Mean difference over images, () or (M,).
    p_value
        Two-sided p-value, () or (M,).
    n_permutations
        Sign patterns that were tried.
    exact
        Whether these were all.
    """

    mean: Tensor
    p_value: Tensor
    n_permutations: int
    exact: bool


def sign_flip(differences: Any, *, n_permutations: int = 10_000, seed: int = 0) -> SignFlip:
    r"""Test that paired differences are symmetric around zero.

    .. math:: p = \frac{1 + \#\{|\sum_i s_i d_i| \ge |\sum_i d_i|\}}{1 + B}, \qquad
        s_i = \pm 1

    or the plain share over all :math:`2^N` patterns where these are no more than B.

    Parameters
    ----------
    differences
        Difference of each image, (N,), or several of them, (N, M), which share the signs.
    n_permutations
        Random sign patterns B.
    seed
        Seed of these.

    Raises
    ------
    ValueError
        If the shape is wrong, there is no image, or a difference is not finite.

    References
    ----------
    The Design of Experiments (Fisher, 1935), section 21.
    """
    d = numbers(differences, "differences")
    if d.ndim not in (1, 2) or not len(d):
        raise ValueError(f"differences must be (N,) or (N, M), got shape {tuple(d.shape)}.")
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1, got {n_permutations}.")
    flat = d.reshape(len(d), -1)
    exact = len(d) < 60 and 2 ** len(d) <= n_permutations
    total = 2 ** len(d) if exact else n_permutations
    observed = flat.sum(0).abs() - ROUNDING * flat.abs().sum(0)
    as_large = torch.zeros(flat.shape[1], dtype=torch.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_ENTRIES // len(d))
    for start in range(0, total, rows):
        size = min(rows, total - start)
        if exact:
            pattern = np.arange(start, start + size)[:, None] >> np.arange(len(d)) & 1
        else:
            pattern = generator.integers(2, size=(size, len(d)))
        signs = torch.from_numpy(2 * pattern - 1).double()
        as_large += ((signs @ flat).abs() >= observed).double().sum(0)
    p = as_large / total if exact else (1 + as_large) / (1 + total)
    return SignFlip(d.mean(0), p.reshape(d.shape[1:]), total, exact)
