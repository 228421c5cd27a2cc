"""What a check may ask of a model: draws that replicate data and score data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
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


Discrepancy = Callable[[Tensor, PredictiveDraw], Tensor]


@dataclass(frozen=True)
class FunctionDraw:
    """A draw made of two functions: all it takes to check a model that is not ours.

    Parameters
    ----------
    replicate
        Returns data of new units, shape (N, G).
    likelihood
        Maps data, shape (N, G), to a distribution with batch shape (N,) and event shape (G,).

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


class PredictiveMixture:
    r"""Posterior predictive distribution as a draw: an equal mixture of reference draws.

    .. math:: \hat p(x_i) = \frac1R \sum_{r=1}^R p(x_i \mid z_i^{(r)}, \theta_r), \quad
        z_i^{(r)} \text{ inferred from } x_i \text{ under } \theta_r

    Its likelihood has the log-mean-exp density, the average mean and the total variance, so that
    every discrepancy works on it unchanged. Components are evaluated one at a time.

    Parameters
    ----------
    draws
        The R reference draws, at least one. They must not be the draws that replicate.

    Raises
    ------
    ValueError
        If there is no draw.
    """

    def __init__(self, draws: Sequence[PredictiveDraw]) -> None:
        if len(draws) == 0:
            raise ValueError("PredictiveMixture needs at least one reference draw, got none.")
        self.draws = tuple(draws)

    def replicate(self) -> Tensor:
        """Data of new units from one component chosen at random, shape (N, G)."""
        return self.draws[int(torch.randint(len(self.draws), ()))].replicate()

    def likelihood(self, x: Tensor) -> Distribution:
        """Equal mixture of the likelihoods of the components, z inferred from ``x`` in each."""
        return _EqualMixture(x, self.draws)


class _EqualMixture(Distribution):
    """Density and moments of an equal mixture in memory of O(N G), whatever the number R."""

    arg_constraints = {}

    def __init__(self, x: Tensor, draws: Sequence[PredictiveDraw]) -> None:
        self._x, self._draws = x, draws
        self._first = draws[0].likelihood(x)
        super().__init__(self._first.batch_shape, self._first.event_shape, validate_args=False)

    def _components(self) -> Iterator[Distribution]:
        yield self._first
        for draw in self._draws[1:]:
            yield draw.likelihood(self._x)

    def log_prob(self, value: Tensor) -> Tensor:
        total: Tensor | None = None
        for component in self._components():
            density = component.log_prob(value)
            total = density if total is None else torch.logaddexp(total, density)
        assert total is not None
        return total - math.log(len(self._draws))

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        mean = torch.zeros_like(self._first.mean)
        between, within = torch.zeros_like(mean), torch.zeros_like(mean)
        for count, component in enumerate(self._components(), start=1):
            step = component.mean - mean
            mean = mean + step / count
            between = between + step * (component.mean - mean)
            within = within + (component.variance - within) / count
        return mean, within + between / len(self._draws)

    @property
    def mean(self) -> Tensor:
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        return self._moments[1]
