"""Large data a few rows at a time: no temporaries of their size, and those in the cache."""

from __future__ import annotations

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
    """
    names = _parameters(likelihood)
    if names is None or x.is_cuda or x.ndim != 2 or x.numel() <= TILE_VALUES:
        return likelihood.log_prob(x)
    assert isinstance(likelihood, Independent)
    base = likelihood.base_dist
    kind = next(kind for kind in PARAMETERS if isinstance(base, kind))
    tiles = [row_tiles(getattr(base, name).expand(x.shape)) for name in names]
    return torch.cat(
        [
            kind(*tile, validate_args=False).log_prob(rows).sum(1)
            for rows, *tile in zip(row_tiles(x), *tiles, strict=True)
        ]
    )


def row_tiles(x: Tensor) -> tuple[Tensor, ...]:
    """Rows of ``x`` (N, G) in blocks of about 2^17 entries; all of them at once on a GPU."""
    return x.split(len(x) if x.is_cuda else max(1, TILE_VALUES // x.shape[1]))


def _parameters(likelihood: Distribution) -> tuple[str, ...] | None:
    if not isinstance(likelihood, Independent) or likelihood.reinterpreted_batch_ndims != 1:
        return None
    base = likelihood.base_dist
    return next((names for kind, names in PARAMETERS.items() if isinstance(base, kind)), None)
