"""Posterior predictive distribution as a draw: a mixture evaluated one component at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.marginals import cumulative, marginals


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

    def marginals(self) -> Distribution:
        """Entries of the mixture, batch shape (N, G), where its components have marginals."""
        return _EqualMarginals(self)

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


class _EqualMarginals(Distribution):
    """Entries of an equal mixture, one component in memory at a time."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, mixture: _EqualMixture) -> None:
        self._mixture = mixture
        super().__init__(mixture.batch_shape + mixture.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return marginals(self._mixture._first).support

    @property
    def mean(self) -> Tensor:
        return self._mixture.mean

    @property
    def variance(self) -> Tensor:
        return self._mixture.variance

    def log_prob(self, value: Tensor) -> Tensor:
        total = torch.full((), -math.inf, dtype=value.dtype, device=value.device)
        for component in self._mixture._components():
            total = torch.logaddexp(total, marginals(component).log_prob(value))
        return total - math.log(len(self._mixture._draws))

    def cdf(self, value: Tensor) -> Tensor:
        parts = (cumulative(marginals(c), value) for c in self._mixture._components())
        return sum(parts, torch.zeros_like(value)) / len(self._mixture._draws)
