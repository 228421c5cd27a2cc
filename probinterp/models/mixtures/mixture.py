"""What all finite mixtures share: expectation-maximisation and Gibbs sampling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Dirichlet
from torch.nn.functional import one_hot

from probinterp.models.base import require_positive
from probinterp.models.mixtures.parameters import MixtureParameters, log_joint

P = TypeVar("P", bound=MixtureParameters)


class Mixture(ABC, Generic[P]):
    r"""Finite mixture whose complete-data updates are conjugate.

    .. math:: \pi \sim \mathrm{Dirichlet}(a, \dots, a), \quad c_i \mid \pi \sim \pi, \quad
        x_i \mid c_i = k \sim p(\cdot \mid \theta_k)

    Parameters
    ----------
    n_components
        Number of components, K.
    concentration
        Parameter a > 0 of the Dirichlet prior of the weights; large values hold them at 1 / K.

    References
    ----------
    Maximum likelihood from incomplete data via the EM algorithm (Dempster, Laird and Rubin,
    1977); Estimation of finite mixture distributions through Bayesian sampling (Diebolt and
    Robert, 1994).
    """

    def __init__(self, n_components: int, concentration: float) -> None:
        require_positive(n_components=n_components)
        if not 0 < concentration < math.inf:
            raise ValueError(f"concentration must be positive and finite, got {concentration}.")
        self.n_components, self.concentration = n_components, concentration

    def em(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        n_restarts: int = 5,
        max_iterations: int = 1000,
        tolerance: float = 1e-9,
    ) -> P:
        r"""Posterior mode by expectation-maximisation, the best of several random starts.

        Every iteration raises :math:`\log p(x \mid \theta) + \log p(\theta)`.

        Parameters
        ----------
        x
            Data, shape (N, G).
        seed
            Seed of the starts.
        n_restarts
            Number of starts; the mode with the highest density is returned.
        max_iterations
            Most iterations per start.
        tolerance
            A start ends when the objective rises by less than this share of itself.

        Returns
        -------
        parameters
            Components in decreasing order of weight. A component without data lies at the mode
            of its prior.

        Raises
        ------
        ValueError
            If the data are not what the mixture describes, the posterior has no mode
            (``concentration`` below 1, a component that collapsed onto equal values under an
            improper prior), or a size is not positive.
        """
        require_positive(n_restarts=n_restarts, max_iterations=max_iterations)
        if self.concentration < 1:
            raise ValueError(
                "with a concentration below 1 the posterior has no mode inside the simplex, "
                f"got {self.concentration}; use gibbs, or a concentration of at least 1."
            )
        self._require_data(x)
        with _seeded(seed, x.device):
            fits = [self._climb(x, max_iterations, tolerance) for _ in range(n_restarts)]
        best = max(fits, key=lambda fit: fit[1])[0]
        return self._select(best, best.weights.argsort(descending=True, stable=True))

    def gibbs(
        self,
        x: Tensor,
        *,
        start: P | None = None,
        n_draws: int = 200,
        burn_in: int = 100,
        thin: int = 1,
        seed: int = 0,
    ) -> list[P]:
        """Posterior draws: labels given the unknowns, then each unknown given all the rest.

        Parameters
        ----------
        x
            Data, shape (N, G), or of several data sets side by side, (..., N, G): as many
            independent chains, each of its own data.
        start
            Where the chain starts, for instance at the result of :meth:`em`; random by default,
            which may end in a minor mode and stay there.
        n_draws
            Number of draws kept.
        burn_in
            Sweeps before the first draw is kept.
        thin
            Sweeps per draw kept.
        seed
            Seed of the start and of the chain, or of all chains together.

        Returns
        -------
        list of parameters
            Autocorrelated draws, with the leading dimensions of the data. Labels have no meaning
            across draws: use functions that do not depend on their order.

        Raises
        ------
        ValueError
            If the data are not what the mixture describes, the prior is improper, or a size is
            not positive.
        """
        require_positive(n_draws=n_draws, thin=thin)
        if burn_in < 0:
            raise ValueError(f"burn_in must not be negative, got {burn_in}.")
        self._require_data(x.flatten(0, -2) if x.ndim > 2 else x)
        self._require_proper_prior()
        # units first: what is summed over them is the same code with one data set or with many
        units = x.movedim(-2, 0).contiguous()
        with _seeded(seed, x.device):
            state = self._sample(units, self._start(units), None) if start is None else start
            draws = []
            for sweep in range(1, burn_in + n_draws * thin + 1):
                joint = log_joint(state, units)
                # Gumbel-max: the probabilities of the labels need no normalising
                labels = (joint - torch.empty_like(joint).exponential_().log()).argmax(-1)
                state = self._sample(units, one_hot(labels, self.n_components).to(x.dtype), state)
                if sweep > burn_in and (sweep - burn_in) % thin == 0:
                    draws.append(state)
        return draws

    def log_posterior(self, x: Tensor, parameters: P) -> Tensor:
        r"""What EM maximises, :math:`\log p(x \mid \theta) + \log p(\theta)` up to a constant."""
        # xlogy: a weight of 0 is the mode under a flat prior, 0 log 0 = 0 there
        weights = torch.xlogy(
            parameters.weights.new_tensor(self.concentration - 1), parameters.weights
        ).sum()
        return log_joint(parameters, x).logsumexp(1).sum() + weights + self._log_prior(parameters)

    def _climb(self, x: Tensor, max_iterations: int, tolerance: float) -> tuple[P, float]:
        parameters = self._maximise(x, self._start(x), None)
        objective = -math.inf
        for _ in range(max_iterations):
            responsibilities = log_joint(parameters, x).softmax(1)
            parameters = self._maximise(x, responsibilities, parameters)
            previous, objective = objective, self.log_posterior(x, parameters).item()
            if objective - previous <= tolerance * abs(objective):
                break
        return parameters, objective

    def _start(self, x: Tensor) -> Tensor:
        """Labels by the nearest of K centres spread out as in k-means++, one-hot, (N, ..., K)."""
        points = self._points(x)

        def distance(chosen: Tensor) -> Tensor:
            centre = points.take_along_dim(chosen[None, ..., None], 0)
            return (points - centre).square().sum(-1, keepdim=True)

        distances = distance(torch.randint(len(x), x.shape[1:-1], device=x.device))
        for _ in range(1, self.n_components):
            nearest = distances.amin(-1)
            # all units coincide with a centre: any one does
            spread = torch.where(nearest.sum(0) > 0, nearest, 1.0)
            chosen = Categorical(spread.movedim(0, -1)).sample()
            distances = torch.cat([distances, distance(chosen)], -1)
        return one_hot(distances.argmin(-1), self.n_components).to(x.dtype)

    def _modal_weights(self, responsibilities: Tensor) -> Tensor:
        excess = responsibilities.sum(0) + self.concentration - 1
        return excess / excess.sum()

    def _sampled_weights(self, labels: Tensor) -> Tensor:
        return Dirichlet(self.concentration + labels.sum(0)).sample()

    @abstractmethod
    def _require_data(self, x: Tensor) -> None:
        """Raise ValueError unless the data are what the mixture describes."""

    @abstractmethod
    def _require_proper_prior(self) -> None:
        """Raise ValueError if the posterior may be improper."""

    @abstractmethod
    def _points(self, x: Tensor) -> Tensor:
        """Coordinates in which distances between units make sense."""

    @abstractmethod
    def _maximise(self, x: Tensor, responsibilities: Tensor, previous: P | None) -> P:
        """Raise the expected complete-data log posterior, starting at ``previous``."""

    @abstractmethod
    def _sample(self, x: Tensor, labels: Tensor, previous: P | None) -> P:
        """Draw the unknowns given one-hot labels (N, ..., K) of units x (N, ..., G)."""

    @abstractmethod
    def _log_prior(self, parameters: P) -> Tensor:
        """Log prior density of the components' unknowns up to a constant."""

    @abstractmethod
    def _select(self, parameters: P, order: Tensor) -> P:
        """Put the components into the given order."""


def require_matrix(x: Tensor) -> None:
    """Raise ValueError unless ``x`` is a finite floating-point matrix with at least one row."""
    if x.ndim != 2 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point of shape (N, G), not empty, got {x.dtype} "
            f"of shape {tuple(x.shape)}."
        )
    if (bad := int((~x.isfinite()).sum())) > 0:
        raise ValueError(f"x has {bad} NaN or infinite entries of {x.numel()}.")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context with its own random state; the caller's is left alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
