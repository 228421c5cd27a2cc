"""What a transcoder says of its codes and outputs, given inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from probinterp.models.activation_priors import ActivationPrior


class CodePosterior(NamedTuple):
    """Posterior of the codes given the inputs.

    Attributes
    ----------
    mean, variance
        Moments of the codes, (N, L, H); the variance is zero where codes are points.
    inclusion
        Probability that a code is active, (N, L, H).
    hard_codes
        The sparse code that stands for the posterior, (N, L, H).
    distribution
        The distribution, batch shape (N,), event shape (L, H); None where codes are points.
    """

    mean: Tensor
    variance: Tensor
    inclusion: Tensor
    hard_codes: Tensor
    distribution: TorchDistribution | None

    def hard(self) -> Tensor:
        """The sparse code that stands for the posterior, (N, L, H)."""
        return self.hard_codes

    def sample(self, *, seed: int) -> Tensor:
        """One draw of the codes, (N, L, H)."""
        if self.distribution is None:
            return self.mean
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            return self.distribution.sample().reshape(self.mean.shape)

    def reshaped(self, shape: tuple[int, ...]) -> CodePosterior:
        """The same with values of another shape."""
        *values, law = self
        mean, variance, inclusion, hard = (value.reshape(shape) for value in values)
        return CodePosterior(mean, variance, inclusion, hard, law)


def code_posterior(activation: ActivationPrior, pre: Tensor) -> CodePosterior:
    """What an activation says of the codes given pre-activations (N, L, H)."""
    moments, law = activation.moments(pre), activation.posterior(pre)
    variance = torch.zeros_like(pre) if moments.variance is None else moments.variance
    inclusion, hard = activation.inclusion(pre), activation.hard(pre)
    return CodePosterior(moments.mean, variance, inclusion, hard, law)


class OutputPredictive(NamedTuple):
    r"""Distribution of the outputs given the inputs, codes integrated out.

    .. math:: \mathrm{Var}(y_c) = \sigma_c^2 + \sum_i \mathrm{Var}(z_i) W_{ic}^2

    Attributes
    ----------
    mean, variance
        Moments of every channel in the units of the outputs, (N, L, D).
    draw
        Function that makes one draw of the outputs, (N, L, D).
    """

    mean: Tensor
    variance: Tensor
    draw: Callable[[], Tensor]

    def sample(self, n_draws: int = 1, *, seed: int) -> Tensor:
        """Draws of the outputs, codes first and then noise, (S, N, L, D)."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            return torch.stack([self.draw() for _ in range(n_draws)])

    def likelihood(self, y: Tensor) -> TorchDistribution:
        """Normal distribution with these moments, batch shape (N,), event shape (L, D).

        Raises
        ------
        ValueError
            If ``y`` has another shape.
        """
        if y.shape != self.mean.shape:
            raise ValueError(f"y must have shape {tuple(self.mean.shape)}, got {tuple(y.shape)}.")
        return dist.Normal(self.mean, self.variance.sqrt()).to_event(2)
