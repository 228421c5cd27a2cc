"""Draws from the posterior predictive, one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from pyro import poutine
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

from probinterp.inference.data import to_device
from probinterp.inference.sites import Site, paired_sites, sites_of
from probinterp.models.base import OBS_SITE, Batch, ProbabilisticModel

Local = Literal["prior", "posterior"]


class ModelDraw:
    """One draw of a model's global unknowns, as criticism wants to see it.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Covariates and shape of the replicate; its ``x`` is used only for totals and, with
        ``local="posterior"``, to infer the factors of the replicate.
    unknowns
        Values of the global sites.
    local
        Where a replicate's local latents come from: ``"prior"`` given the globals, or
        ``"posterior"`` given ``batch.x``.
    seed
        Seed of the replicate.
    """

    def __init__(
        self,
        model: ProbabilisticModel,
        batch: Batch,
        unknowns: dict[str, Tensor],
        local: Local,
        seed: int,
    ) -> None:
        self.model, self.batch, self.unknowns = model, batch, unknowns
        self.local, self.seed = local, seed

    @torch.no_grad()
    def replicate(self) -> Tensor:
        """New observations with the batch's covariates, shape (N, G)."""
        with _seeded(self.seed, self.batch.x.device):
            values = dict(self.unknowns)
            if self.local == "posterior":
                inferred = _sites(self.model, self.batch, local=True)
                values |= {name: site.value for name, site in inferred.items()}
            program = poutine.condition(poutine.uncondition(self.model.model), data=values)
            return sites_of(program, self.batch)[OBS_SITE].value

    @torch.no_grad()
    def likelihood(self, x: Tensor) -> TorchDistribution:
        """Distribution of ``x`` (N, G) given the posterior mean of its own local latents.

        The latents are inferred from ``x`` itself, so the result is a function of the data and
        the globals alone; the latents that made a replicate are never used.
        """
        if x.shape[1] != self.batch.x.shape[1]:
            raise ValueError(
                f"x must have {self.batch.x.shape[1]} features, got shape {tuple(x.shape)}."
            )
        batch = self.batch._replace(x=x)
        with _seeded(self.seed, x.device):
            inferred = _sites(self.model, batch, local=True)
            means = {name: site.distribution.mean for name, site in inferred.items()}
            program = poutine.condition(self.model.model, data=self.unknowns | means)
            return sites_of(program, batch)[OBS_SITE].distribution


class PredictiveDraws:
    """Posterior predictive draws of a model; iterate as often as you like.

    Attributes
    ----------
    reference
        Draw at the posterior mean of the globals, for plug-in discrepancies.
    local
        Mode of the local latents, ``"prior"`` or ``"posterior"``.
    point_estimate
        Whether the globals are point estimates, so that replicates lack their uncertainty.
    """

    def __init__(
        self, model: ProbabilisticModel, batch: Batch, n_draws: int, local: Local, seed: int
    ) -> None:
        self.model, self.n_draws, self.local, self.seed = model, n_draws, local, seed
        self.batch = to_device(batch, next(model.parameters()).device)
        with _seeded(seed, self.batch.x.device):
            sites = _sites(model, self.batch, local=False)
        self.point_estimate = all(isinstance(s.distribution, Delta) for s in sites.values())
        center = {name: site.distribution.mean for name, site in sites.items()}
        self.reference = ModelDraw(model, self.batch, center, local, seed)

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[ModelDraw]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.n_draws):
            seed = int(torch.randint(2**62, (), generator=generator))
            unknowns = self.reference.unknowns
            if not self.point_estimate:
                with _seeded(seed, self.batch.x.device):
                    sites = _sites(self.model, self.batch, local=False)
                unknowns = {name: site.value for name, site in sites.items()}
            yield ModelDraw(self.model, self.batch, unknowns, self.local, seed + 1)


def predictive_draws(
    model: ProbabilisticModel,
    batch: Batch,
    n_draws: int,
    *,
    local: Local = "prior",
    seed: int = 0,
) -> PredictiveDraws:
    r"""Draws :math:`\theta_s \sim q(\theta)` that can replicate a batch and score data.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Held-out observations: covariates and shape of the replicates.
    n_draws
        Number of draws, S.
    local
        ``"prior"``: replicates are of new units, which checks the factors' prior too.
        ``"posterior"``: replicates share the factors inferred from ``batch`` itself, which
        uses that batch twice and is blind to a wrong prior.
    seed
        Same seed, same draws.

    Returns
    -------
    PredictiveDraws
        Iterable of draws; memory O(N G) whatever ``n_draws``.

    References
    ----------
    Holdout predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024).
    """
    if not isinstance(n_draws, int) or n_draws < 1:
        raise ValueError(f"n_draws must be a positive integer, got {n_draws!r}.")
    if local not in ("prior", "posterior"):
        raise ValueError(f'local must be "prior" or "posterior", got {local!r}.')
    return PredictiveDraws(model, batch, n_draws, local, seed)


@torch.no_grad()
def log_predictive_density(
    model: ProbabilisticModel, batch: Batch, *, n_samples: int = 100, seed: int = 0
) -> Tensor:
    r"""Log density of each observation with its local latents integrated out.

    .. math:: \log p(x_i) \approx \log \frac1S \sum_s
              \frac{p(x_i \mid z_s)\, p(z_s)}{q(z_s \mid x_i)}, \quad z_s \sim q(z \mid x_i)

    An importance-weighted estimate with the guide as proposal: a lower bound on average, tight
    as S grows. Globals are at a draw of the guide.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Observations, (N, G).
    n_samples
        Number of importance samples, S.
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
    batch = to_device(batch, next(model.parameters()).device)
    total = torch.full((len(batch.x),), -math.inf, device=batch.x.device)
    with _seeded(seed, batch.x.device):
        for _ in range(n_samples):
            sites, proposed = paired_sites(model.model, model.guide, batch)
            weight = _local_log_prob(sites) - _local_log_prob(proposed)
            total = torch.logaddexp(total, weight)
    return total - math.log(n_samples)


def _local_log_prob(sites: dict[str, Site]) -> Tensor:
    # the density of the site itself: KL weights and plate scales do not belong here
    return torch.stack([site.log_prob() for site in sites.values() if site.local]).sum(0)


@torch.no_grad()
def _sites(model: ProbabilisticModel, batch: Batch, *, local: bool) -> dict[str, Site]:
    """Local or global sites of the guide."""
    found = sites_of(model.guide, batch)
    return {name: site for name, site in found.items() if site.local == local}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context with its own random state; the caller's is left alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
