"""What a check may ask of a model: draws that replicate data and score data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.distributions import Distribution


@runtime_checkable
class PredictiveDraw(Protocol):
    """One posterior draw of the global unknowns; all that criticism may ask for.

    A draw knows the covariates of the held-out units (design matrix, row lengths, studies), so
    that what it replicates has their size and circumstances.
    """

    def replicate(self) -> Tensor:
        """Data of new units, shape (N, G), drawn afresh at every call."""
        ...

    def likelihood(self, x: Tensor) -> Distribution:
        """Distribution p(. | z, theta) with batch shape (N,) and event shape (G,).

        Local latents z are inferred from ``x`` itself, deterministically (for instance the
        posterior mean of z given ``x``, or z integrated out), never taken from the replicate: a
        discrepancy is then a function of data and theta alone. ``log_prob``, ``mean`` and
        ``variance`` are what the discrepancies use.
        """
        ...


@runtime_checkable
class StackedReplicates(Protocol):
    """Draws whose replicates can be had several at a time."""

    def __len__(self) -> int: ...

    def replicate_chunk(self, start: int, stop: int) -> Tensor:
        """Replicates of the draws from ``start`` to ``stop``, shape (C, N, G)."""
        ...


Discrepancy = Callable[[Tensor, PredictiveDraw], Tensor]
Local = Literal["prior", "posterior", "observed", "covariates"]


@dataclass(frozen=True)
class FunctionDraw:
    """A draw made of two functions: all it takes to check a model that is not ours.

    Parameters
    ----------
    replicate
        Returns data of new units, shape (N, G).
    likelihood
        Maps data, shape (N, G), to a distribution with batch shape (N,) and event shape (G,).
    local
        How the local latents of the replicate are drawn, None if there are none or all draws
        together say it.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Independent, Poisson
    >>> rate = torch.full((5, 1), 2.0)
    >>> draw = FunctionDraw(lambda: torch.poisson(rate), lambda x: Independent(Poisson(rate), 1))
    >>> draw.likelihood(draw.replicate()).log_prob(draw.replicate()).shape
    torch.Size([5])
    """

    replicate: Callable[[], Tensor]
    likelihood: Callable[[Tensor], Distribution]
    local: Local | None = None


class LooseDraws:
    """Draws in a list or from a generator, with the reservations that the first of them carries.

    Collections of draws say of themselves how they came about. A list made of one does not, and a
    check of it would take for calibrated what is not.

    Attributes
    ----------
    local, scoring, point_estimate
        Those of the first draw, None or False where it does not say.
    """

    def __init__(self, draws: Iterable[PredictiveDraw]) -> None:
        iterator = iter(draws)
        first = list(itertools.islice(iterator, 1))
        # an iterator over the list lets go of the draw once it has been used
        self._draws = draws if iterator is not draws else itertools.chain(iter(first), iterator)
        said = first[0] if first else None
        self.local = getattr(said, "local", None)
        self.scoring = getattr(said, "scoring", None)
        self.point_estimate = getattr(said, "point_estimate", False)

    def __iter__(self) -> Iterator[PredictiveDraw]:
        return iter(self._draws)


def self_describing(draws: Iterable[PredictiveDraw]) -> Iterable[PredictiveDraw]:
    """The draws as they are, or :class:`LooseDraws` where they cannot have attributes."""
    bare = isinstance(draws, list | tuple | Iterator) and not hasattr(draws, "__dict__")
    return LooseDraws(draws) if bare else draws
