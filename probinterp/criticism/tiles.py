"""Large data a few rows at a time: no temporaries of their size, and those in the cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    Normal,
    Poisson,
    StudentT,
    constraints,
)

TILE_VALUES = 2**17  # entries of a tile; their temporaries stay in the cache of a core
PARAMETERS: dict[type[Distribution], tuple[str, ...]] = {
    Normal: ("loc", "scale"),
    Laplace: ("loc", "scale"),
    LogNormal: ("loc", "scale"),
    StudentT: ("df", "loc", "scale"),
    Gamma: ("concentration", "rate"),
    Exponential: ("rate",),
    Poisson: ("rate",),
}


def log_density(likelihood: Distribution, x: Tensor) -> Tensor:
    """Log density of every unit, shape (N,), as ``likelihood.log_prob(x)`` gives it.

    Large data are scored in tiles of rows where the features are independent and of a common
    family: that needs a small part of the memory, and is several times faster on a CPU.

    Parameters
    ----------
    likelihood
        Distribution with batch shape (N,) and event shape (G,).
    x
        Data, shape (N, G).

    Raises
    ------
    ValueError
        If the likelihood validates its arguments and an entry lies outside its support.
    """
    family = _family(likelihood)
    if family is None or x.is_cuda or x.ndim != 2 or x.numel() <= TILE_VALUES:
        return likelihood.log_prob(x)
    law, kind, names = family
    tiles = [row_tiles(getattr(law, name).expand(x.shape)) for name in names]
    bounded = law._validate_args and law.support is not constraints.real  # NaN speaks for itself
    found = []
    for rows, *tile in zip(row_tiles(x), *tiles, strict=True):
        if kind is Normal:
            found.append(_normal_log_density(rows, *tile))
            continue
        part = kind(*tile, validate_args=False)  # the parameters were validated, x was not
        if bounded:
            part._validate_sample(rows)
        found.append(part.log_prob(rows).sum(1))
    return torch.cat(found)


def _normal_log_density(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of each row in a third of the passes over the data that torch's takes."""
    one_row = scale[:1] if scale.stride(0) == 0 else scale  # the same for all units
    constant = one_row.log().sum(1) + x.shape[1] * math.log(2 * math.pi) / 2
    squares = torch.linalg.vector_norm((x - loc).div_(scale), dim=1).square()
    return -(squares / 2 + constant)


def row_tiles(x: Tensor) -> tuple[Tensor, ...]:
    """Rows of ``x`` (N, G) in blocks of about 2^17 entries; all of them at once on a GPU."""
    return x.split(len(x) if x.is_cuda else max(1, TILE_VALUES // x.shape[1]))


def _family(likelihood: Distribution) -> tuple[Distribution, Any, tuple[str, ...]] | None:
    """Law of the entries, its class in the table and its parameters, if it is of a known family."""
    if not isinstance(likelihood, Independent) or likelihood.reinterpreted_batch_ndims != 1:
        return None
    law = likelihood.base_dist
    for kind, names in PARAMETERS.items():
        if isinstance(law, kind) and type(law).log_prob is kind.log_prob:
            return law, kind, names
    return None
