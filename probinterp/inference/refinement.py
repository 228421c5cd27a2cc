"""Posteriors of local latents improved one observation at a time, beyond what an encoder gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from probinterp.distributions import GatedNormal
from probinterp.inference.seeding import seeded
from probinterp.inference.sites import sites_of
from probinterp.models.base import AnyBatch, ProbabilisticModel

Law = Callable[[], TorchDistribution]


def refined_locals(
    model: ProbabilisticModel,
    batch: AnyBatch,
    *,
    n_steps: int = 100,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> dict[str, TorchDistribution]:
    r"""Posterior of the local latents, fitted to each observation from the encoder's as a start.

    .. math:: \max_{m_i, s_i} E_q[\log p(x_i, z_i) - \log q(z_i)], \quad q = N(m_i, s_i)

    An encoder fitted to few observations of many features is a poor guess for new ones; the
    density of these is then underestimated, whatever the decoder is worth.

    Parameters
    ----------
    model
        Fitted model whose guide has normal local sites.
    batch
        Observations, (N, G).
    n_steps
        Steps of Adam.
    learning_rate
        Step size.
    seed
        Seed of the samples.

    Returns
    -------
    dict
        Distribution by site.

    Raises
    ------
    TypeError
        If a local site is not normal.

    References
    ----------
    Semi-Amortized Variational Autoencoders (Kim et al., 2018).
    """
    with seeded(seed, batch.x.device), pyro.validation_enabled(False), _frozen(model):
        with torch.no_grad():
            sites = sites_of(model.guide, batch)
        given = {name: site.value for name, site in sites.items() if not site.local}
        parts = {name: _free(s.distribution) for name, s in sites.items() if s.local}
        parameters = [p for free, _ in parts.values() for p in free]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        for _ in range(n_steps):
            laws = {name: law() for name, (_, law) in parts.items()}
            drawn = {name: law.rsample() for name, law in laws.items()}
            program = poutine.condition(model.model, data=given | drawn)
            joint = [s.log_prob() for s in sites_of(program, batch).values() if s.local]
            entropy = [-law.log_prob(drawn[name]) for name, law in laws.items()]
            optimizer.zero_grad()
            (-torch.stack(joint + entropy).sum()).backward()
            optimizer.step()
        with torch.no_grad():
            return {name: law() for name, (_, law) in parts.items()}


def _free(law: TorchDistribution) -> tuple[list[Tensor], Law]:
    """Parameters of a normal law, free for each observation, and the law that they make."""
    loc = law.mean.detach().clone().requires_grad_()
    log_factor = torch.zeros_like(loc).requires_grad_()
    if isinstance(law, MultivariateNormal):
        tril = law.scale_tril.detach()
        scaled = lambda: log_factor.exp().unsqueeze(-1) * tril  # noqa: E731
        return [loc, log_factor], lambda: MultivariateNormal(loc, scale_tril=scaled())
    if isinstance(law, GatedNormal):
        scale, gate = law.normal.scale.detach(), law.gate
        return [loc, log_factor], lambda: GatedNormal(loc, scale * log_factor.exp(), gate)
    if isinstance(law, Independent) and isinstance(law.base_dist, Normal):
        scale, n_dims = law.base_dist.scale.detach(), law.reinterpreted_batch_ndims
        normal = lambda: dist.Normal(loc, scale * log_factor.exp())  # noqa: E731
        return [loc, log_factor], lambda: normal().to_event(n_dims)
    raise TypeError(f"only normal posteriors can be refined, got {type(law).__name__}.")


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of the model: they are not what is fitted."""
    free = [p for p in model.parameters() if p.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
