"""Evidence lower bound, site by site and without reading the device."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from probinterp.inference.data import Data, to_device
from probinterp.inference.sites import Program, Site, paired_sites
from probinterp.models.base import AnyBatch, ProbabilisticModel


class MeanFieldELBO(TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO`` whose differentiable loss never waits for the device.

    The value and the gradient are those of the parent; the parent reads the loss back to the
    host three times a step to warn about NaN, which :func:`probinterp.fit` does once an epoch.
    """

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Negative ELBO as one scalar tensor on the device of the model."""
        total: Tensor | float = 0.0
        for _ in range(self.num_particles):
            terms = elbo_terms(model, guide, *args, **kwargs)
            total = total - torch.stack([term for term, _ in terms.values()]).sum()
        return total / self.num_particles


def elbo_terms(
    model: Program, guide: Program, *args: Any, **kwargs: Any
) -> dict[str, tuple[Tensor, bool]]:
    """Contribution of every site to the ELBO and whether the site is local.

    An observed site contributes its log density, a latent one minus its KL divergence, in closed
    form where there is one and by the sample otherwise; both scaled as their plates say.
    """
    sites, proposed = paired_sites(model, guide, *args, **kwargs)
    return {
        name: (
            site.scaled_sum(site.log_prob())
            if site.observed
            else -_divergence(proposed[name], site),
            site.local,
        )
        for name, site in sites.items()
    }


def bound_terms(
    model: ProbabilisticModel, batch: AnyBatch, n_total: int | None = None
) -> dict[str, tuple[Tensor, bool]]:
    """The ELBO term by term: the model's closed form where it has one, else :func:`elbo_terms`."""
    exact = model.exact_elbo(batch, n_total)
    return elbo_terms(model.model, model.guide, batch, n_total) if exact is None else exact


def negative_bound(
    model: ProbabilisticModel, batch: AnyBatch, n_total: int, elbo: Trace_ELBO | None = None
) -> Tensor:
    """Loss of a step, (): by the given Pyro ELBO, else from :func:`bound_terms`."""
    if elbo is not None:
        return elbo.differentiable_loss(model.model, model.guide, batch, n_total)
    terms = bound_terms(model, batch, n_total)
    return -torch.stack([term for term, _ in terms.values()]).sum()


def _divergence(proposed: Site, prior: Site) -> Tensor:
    try:
        exact = kl_divergence(proposed.distribution, prior.distribution)
        return proposed.scaled_sum(exact)
    except NotImplementedError:  # no closed form registered for this pair
        return proposed.scaled_sum(proposed.log_prob()) - prior.scaled_sum(prior.log_prob())


@torch.no_grad()
def heldout_loss(
    model: ProbabilisticModel, data: Data, batch_size: int, device: torch.device, seed: int = 0
) -> float:
    """Negative ELBO per observation of the observations alone, everything annealed to its end.

    Global terms are left out, so data sets of different size are comparable.
    """
    return _evaluate(model, data, batch_size, device, seed)[0]


@torch.no_grad()
def full_objective(
    model: ProbabilisticModel,
    data: Data,
    *,
    batch_size: int = 512,
    n_samples: int = 5,
    seed: int = 0,
) -> float:
    """ELBO per observation with the global terms counted once, averaged over samples.

    This is the number by which restarts are compared.
    """
    device = next(model.parameters()).device
    losses = [
        sum(_evaluate(model, data, batch_size, device, seed + draw)) for draw in range(n_samples)
    ]
    return -sum(losses) / n_samples


def _evaluate(
    model: ProbabilisticModel, data: Data, batch_size: int, device: torch.device, seed: int
) -> tuple[float, float]:
    """Local and global part of the loss per observation; leaves the random state alone."""
    model.anneal(1.0)
    n, local_part, global_part = len(data), torch.zeros((), device=device), 0.0
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for index in torch.arange(n).split(batch_size):
            batch = to_device(data.batch(index), device)
            terms = bound_terms(model, batch, n)
            local = torch.stack([term for term, is_local in terms.values() if is_local]).sum()
            local_part -= local * (len(index) / n)  # undo the scale of the plate
            if not global_part:
                global_part = -float(sum(term for term, is_local in terms.values() if not is_local))
    return float(local_part) / n, global_part / n
