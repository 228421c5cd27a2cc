"""Exact posterior draws as predictive checks want to see them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution


@dataclass(frozen=True)
class LawDraw:
    """A draw whose units are independent of each other given the unknowns.

    Parameters
    ----------
    law
        Distribution of the compared data: batch shape (N,), event shape (G,).
    """

    law: Distribution

    def replicate(self) -> Tensor:
        """New data, shape (N, G), from torch's global generator."""
        return self.law.sample()

    def likelihood(self, x: Tensor) -> Distribution:
        """Distribution of the compared data; nothing is inferred from ``x``."""
        return self.law


class ExactDraws:
    """Posterior draws of an exact model; iterate as often as you like, for the same draws.

    Parameters
    ----------
    sample
        Endless draws of the unknowns with the given generator.
    n_draws
        Number of draws, S.
    seed
        Same seed, same unknowns; the replicates use torch's global generator.
    reference
        Draw at the posterior mean, for plug-in discrepancies.
    predictive
        Makes the ``reference_draws``, whose equal mixture is the posterior predictive density.
    n_obs
        Number of units of the fit.
    local
        Where the local latents of a replicate come from: ``"prior"``, ``"observed"`` (an
        observed part of the same units, apart from the compared one), ``"posterior"`` (the
        compared data themselves), or None for a model without local latents.

    Raises
    ------
    ValueError
        If ``n_draws`` is not a positive integer.
    """

    point_estimate = False

    def __init__(
        self,
        sample: Callable[[torch.Generator], Iterator[LawDraw]],
        n_draws: int,
        seed: int,
        *,
        reference: LawDraw,
        predictive: Callable[[], tuple[LawDraw, ...]],
        n_obs: int | None,
        local: Literal["prior", "observed", "posterior"] | None = None,
    ) -> None:
        if not isinstance(n_draws, int) or n_draws < 1:
            raise ValueError(f"n_draws must be a positive integer, got {n_draws!r}.")
        self._sample, self._predictive = sample, predictive
        self.n_draws, self.seed = n_draws, seed
        self.reference, self.n_obs, self.local = reference, n_obs, local

    @cached_property
    def reference_draws(self) -> tuple[LawDraw, ...]:
        """Draws whose equal mixture is the posterior predictive density; none replicates."""
        return self._predictive()

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[LawDraw]:
        device = self.reference.law.mean.device
        return itertools.islice(self._sample(generator(self.seed, device)), self.n_draws)


def generator(seed: int, device: torch.device, stream: int = 0) -> torch.Generator:
    """Generator whose numbers are not those of data simulated under the same seed.

    Different streams of one seed are independent of each other.
    """
    master = torch.Generator().manual_seed(seed)
    derived = torch.randint(2**62, (stream + 1,), generator=master)[stream]
    return torch.Generator(device).manual_seed(int(derived))


def normal_like(x: Tensor, source: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of ``x``."""
    return torch.randn(x.shape, generator=source, dtype=x.dtype, device=x.device)


def gamma_like(shape: Tensor, source: torch.Generator) -> Tensor:
    """Gamma numbers with the given shapes and rate 1."""
    # torch.distributions.Gamma takes no generator; this is the function it calls
    return torch._standard_gamma(shape, generator=source)


def require_data(x: Tensor, name: str) -> None:
    """Raise unless ``x`` holds finite floating point numbers of shape (..., N, G)."""
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must be floating point of shape (..., N, G), not empty, "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )
    if (bad := int((~x.isfinite()).sum())) > 0:
        raise ValueError(f"{name} has {bad} NaN or infinite entries of {x.numel()}.")


def require_positive_number(value: float, name: str) -> None:
    """Raise ``ValueError`` unless the number is positive and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")


def require_equal_counts(mask: Tensor) -> None:
    """Raise unless ``mask`` (..., N, G) hides as many cells, at least one, in each data set."""
    counts = mask.flatten(-2).sum(-1)
    if counts.min() == 0 or counts.min() != counts.max():
        raise ValueError(
            "mask must hide at least one cell, and as many in each data set, got between "
            f"{int(counts.min())} and {int(counts.max())}."
        )
