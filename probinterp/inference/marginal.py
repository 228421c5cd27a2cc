"""Densities with the local latents integrated out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from probinterp.inference.data import to_device
from probinterp.inference.refinement import refined_locals
from probinterp.inference.seeding import seeded
from probinterp.inference.sites import Site, sites_of
from probinterp.models.base import OBS_SITE, AnyBatch, ProbabilisticModel

Values = Mapping[str, Tensor]
Locals = Mapping[str, TorchDistribution]


def log_predictive_density(
    model: ProbabilisticModel,
    batch: AnyBatch,
    *,
    n_samples: int = 100,
    refine_steps: int = 0,
    seed: int = 0,
) -> Tensor:
    r"""Log density of each observation with its local latents integrated out.

    .. math:: \log p(x_i) \approx \log \frac1S \sum_s
              \frac{p(x_i \mid z_s)\, p(z_s)}{q(z_s \mid x_i)}, \quad z_s \sim q(z \mid x_i)

    An importance-weighted estimate with the guide as proposal: a lower bound on average, tight
    as S grows. Globals are at draws of the guide.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Observations, (N, G).
    n_samples
        Number of importance samples, S.
    refine_steps
        Steps by which the proposal of each observation is improved first
        (:func:`probinterp.inference.refined_locals`); 0 takes the guide as it is, whose bound is
        loose for new observations where few were fitted.
    seed
        Seed of the samples.

    Returns
    -------
    Tensor
        Log density per observation, (N,), in nats.

    References
    ----------
    Importance Weighted Autoencoders (Burda et al., 2016), equation 8.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
    if refine_steps < 0:
        raise ValueError(f"refine_steps must not be negative, got {refine_steps}.")
    batch = to_device(batch, next(model.parameters()).device)
    refined = refined_locals(model, batch, n_steps=refine_steps, seed=seed) if refine_steps else {}
    with torch.no_grad(), seeded(seed, batch.x.device):
        return _importance_weighted(model, batch, {}, n_samples, refined)


class IntegratedLikelihood(TorchDistribution):
    r"""Distribution of the observations given the globals, local latents integrated by sampling.

    Without ``locals_`` the latents have their prior and the density is the importance-weighted
    estimate of :func:`log_predictive_density` with the guide at the scored value as proposal;
    with it, they have that distribution and
    :math:`\log p(x_i) \approx \log \frac1S \sum_s p(x_i \mid z_s)`, :math:`z_s \sim q(z_i)`.
    Mean and variance average S draws of the latents in both cases. All of them use the same
    seed at every call: equal values have equal densities.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Covariates of the observations.
    unknowns
        Values of the global sites.
    n_samples
        Number of samples, S; kept as an attribute of the same name.
    seed
        Seed of the samples.
    locals_
        Distribution of the local latents by site, or None for their prior.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        model: ProbabilisticModel,
        batch: AnyBatch,
        unknowns: Values,
        n_samples: int,
        seed: int,
        locals_: Locals | None = None,
    ) -> None:
        self.model, self.batch, self.unknowns, self.locals_ = model, batch, unknowns, locals_
        self.n_samples, self.seed = n_samples, seed
        super().__init__(batch.x.shape[:1], batch.x.shape[1:], validate_args=False)

    @torch.no_grad()
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value`` (N, G), shape (N,), in nats."""
        batch = self.batch._replace(x=value)
        with seeded(self.seed, value.device):
            if self.locals_ is None:
                return _importance_weighted(self.model, batch, self.unknowns, self.n_samples)
            return _log_mean_exp(lambda: self._given_locals(batch).log_prob(value), self.n_samples)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One draw of observations (N, G) with latents of their own."""
        if torch.Size(sample_shape):
            raise ValueError(f"only single draws are possible, got shape {tuple(sample_shape)}.")
        return self._given_locals(self.batch).sample()

    @property
    def mean(self) -> Tensor:
        """Mean, (N, G)."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """Variance within and between draws of the latents, (N, G)."""
        return self._moments[1]

    @cached_property
    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self.batch.x)
        mean, between, within = zero, zero, zero
        with seeded(self.seed, zero.device):
            for count in range(1, self.n_samples + 1):
                given = self._given_locals(self.batch)
                step = given.mean - mean
                mean = mean + step / count
                between = between + step * (given.mean - mean)
                within = within + given.variance
        return mean, within / self.n_samples + between / max(1, self.n_samples - 1)

    def _given_locals(self, batch: AnyBatch) -> TorchDistribution:
        """Likelihood at one draw of the local latents."""
        drawn = {name: law.sample() for name, law in (self.locals_ or {}).items()}
        program = poutine.condition(self.model.model, data={**self.unknowns, **drawn})
        return sites_of(program, batch)[OBS_SITE].distribution


def _importance_weighted(
    model: ProbabilisticModel,
    batch: AnyBatch,
    unknowns: Values,
    n_samples: int,
    refined: Locals | None = None,
) -> Tensor:
    guide = poutine.condition(model.guide, data=dict(unknowns))

    def weight() -> Tensor:
        proposed = sites_of(guide, batch)
        for name, law in (refined or {}).items():
            proposed[name] = proposed[name]._replace(distribution=law, value=law.sample())
        values = {name: site.value for name, site in proposed.items()}
        sites = sites_of(poutine.condition(model.model, data=values), batch)
        return local_log_prob(sites) - local_log_prob(proposed)

    return _log_mean_exp(weight, n_samples)


def _log_mean_exp(term: Callable[[], Tensor], n: int) -> Tensor:
    total = term()
    for _ in range(n - 1):
        total = torch.logaddexp(total, term())
    return total - math.log(n)


def local_log_prob(sites: dict[str, Site]) -> Tensor:
    """Log density of the local sites, (N,), without KL weights and scales of plates."""
    return torch.stack([site.log_prob() for site in sites.values() if site.local]).sum(0)
