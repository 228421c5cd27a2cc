"""Values of a mixture's unknowns, and the draws that they make for predictive checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily


class MixtureParameters(Protocol):
    """One value of the unknowns of a mixture."""

    @property
    def weights(self) -> Tensor:
        """Probabilities of the components, shape (..., K)."""
        ...

    @property
    def components(self) -> Distribution:
        """The components, batch shape (..., K) and event shape (G,)."""
        ...


def log_joint(parameters: MixtureParameters, x: Tensor) -> Tensor:
    r"""Log density of each unit together with each label, shape (N, ..., K) for x (N, ..., G).

    .. math:: \log \pi_k + \log p(x_i \mid \theta_k)
    """
    return parameters.weights.log() + parameters.components.log_prob(x.unsqueeze(-2))


@dataclass(frozen=True, eq=False)
class MixtureDraw:
    r"""A mixture at one value of its unknowns: it replicates new units and scores data.

    .. math:: p(x_i \mid \theta) = \sum_k \pi_k\, p(x_i \mid \theta_k)

    Parameters
    ----------
    parameters
        Weights and components.
    n_new
        Number of units of a replicate, N.
    """

    parameters: MixtureParameters
    n_new: int

    def replicate(self) -> Tensor:
        """Data of new units, labels drawn from the weights, shape (N, G)."""
        x = self._law(self.n_new).sample()
        return x.to(self.parameters.weights.dtype)

    def likelihood(self, x: Tensor) -> MixtureSameFamily:
        """Mixture density with batch shape (N,); the labels are summed out exactly."""
        return self._law(len(x))

    def _law(self, n: int) -> MixtureSameFamily:
        weights, components = self.parameters.weights, self.parameters.components
        return MixtureSameFamily(
            Categorical(weights.expand(n, -1), validate_args=False),
            components.expand(torch.Size((n, len(weights)))),
            validate_args=False,
        )


class MixtureDraws:
    """Draws of one mixture for a predictive check; iterate as often as you like.

    Parameters
    ----------
    parameters
        Posterior draws of the unknowns, or a list with a single estimate.
    n_new
        Number of units of a replicate.
    n_draws
        Number of draws; values are used in turn when there are fewer. Default: one of each.
    n_obs
        Number of units of the fit.

    Attributes
    ----------
    local
        ``"prior"``: labels of a replicate are drawn from the weights.
    point_estimate
        Whether there is a single value, so that replicates lack its uncertainty.

    Raises
    ------
    ValueError
        If there are no parameters, or a size is not positive.
    """

    local: Literal["prior"] = "prior"

    def __init__(
        self,
        parameters: Sequence[MixtureParameters],
        n_new: int,
        *,
        n_draws: int | None = None,
        n_obs: int | None = None,
    ) -> None:
        n_draws = len(parameters) if n_draws is None else n_draws
        if len(parameters) == 0:
            raise ValueError("MixtureDraws needs at least one value of the parameters, got none.")
        if n_new < 1 or n_draws < 1:
            raise ValueError(f"n_new and n_draws must be positive, got {n_new} and {n_draws}.")
        self.n_draws, self.n_obs = n_draws, n_obs
        self.point_estimate = len(parameters) == 1
        self._draws = tuple(MixtureDraw(value, n_new) for value in parameters)

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[MixtureDraw]:
        return (self._draws[s % len(self._draws)] for s in range(self.n_draws))
