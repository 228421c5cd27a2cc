"""Scores of single observations: gradients of their log density by the parameters."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from probinterp.inference.marginal import local_log_prob
from probinterp.inference.seeding import seeded
from probinterp.inference.sites import sites_of
from probinterp.models.base import AnyBatch, ProbabilisticModel

BLOCK = 128  # rows whose scores are found together


def generative_parameters(
    model: ProbabilisticModel, batch: AnyBatch, seed: int
) -> dict[str, nn.Parameter]:
    """Parameters that the joint density of a few rows depends on, by name.

    Parameters
    ----------
    model
        Fitted model.
    batch
        At least one observation.
    seed
        Seed of the local latents at which the density is looked at.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with seeded(seed, batch.x.device), pyro.validation_enabled(False):
        joint = _expected_joint(model, batch.rows(slice(0, 2)))
    found = torch.autograd.grad(joint, list(named.values()), allow_unused=True)
    return {
        name: p
        for (name, p), gradient in zip(named.items(), found, strict=True)
        if gradient is not None
    }


def row_scores(
    model: ProbabilisticModel,
    batch: AnyBatch,
    parameters: list[nn.Parameter],
    n_samples: int,
    seed: int,
) -> Tensor:
    r"""Gradient of the log density of every row, local latents integrated out.

    .. math:: s(x_i) = \nabla_\theta \log p(x_i \mid \theta)
             = E[\nabla_\theta \log p(x_i, z_i \mid \theta) \mid x_i]

    From the closed form of the density where the model has one; else the expectation is an
    importance-weighted average over samples of z from the guide.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Observations, (N, G).
    parameters
        What to differentiate by; strung together they have P elements.
    n_samples
        Samples of z for each row, without closed form.
    seed
        Seed of the samples.

    Returns
    -------
    Tensor
        Shape (N, P), in double precision.
    """
    rows = torch.arange(len(batch.x), device=batch.x.device)
    with seeded(seed, batch.x.device), pyro.validation_enabled(False):
        if model.exact_marginal(batch) is not None:
            blocks = [batch.rows(block) for block in rows.split(BLOCK)]
            return torch.cat([_exact_scores(model, block, parameters) for block in blocks])
        found = []
        for row in rows:
            joint = _expected_joint(model, batch.rows(row.expand(n_samples)))
            gradients = torch.autograd.grad(joint, parameters)
            found.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    return torch.stack(found)


def _exact_scores(
    model: ProbabilisticModel, batch: AnyBatch, parameters: list[nn.Parameter]
) -> Tensor:
    exact = model.exact_marginal(batch)
    assert exact is not None
    density = exact.log_prob(batch.x)
    each = torch.eye(len(density), dtype=density.dtype, device=density.device)
    gradients = torch.autograd.grad(density, parameters, each, is_grads_batched=True)
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1).double()


def _expected_joint(model: ProbabilisticModel, batch: AnyBatch) -> Tensor:
    """Average of log p(x, z) with importance weights; its gradient is a score.

    The rows of ``batch`` are copies of one row, each with its own sample of z from the guide.
    """
    proposed = sites_of(model.guide, batch)
    values = {
        name: site.value.detach() if site.local else site.value for name, site in proposed.items()
    }
    joint = local_log_prob(sites_of(poutine.condition(model.model, data=values), batch))
    weight = (joint - local_log_prob(proposed)).detach().softmax(0)
    return weight @ joint
