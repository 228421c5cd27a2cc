"""How many factors a model with spare columns really uses."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.distributions import column_cost
from probinterp.inference.data import Data, as_batch
from probinterp.inference.posterior import posterior
from probinterp.models.base import Batch
from probinterp.models.spike_slab_loadings import active_loadings


class EffectiveFactors(NamedTuple):
    r"""Use of the columns of every block of a model; one entry a block.

    Attributes
    ----------
    block
        Block, -1 for shared and m for study m, (b,).
    n_columns
        Columns that the block was given, (b,).
    n_active
        Columns that reach a feature, (b,).
    effective
        :math:`\exp(-\sum_k p_k \log p_k)` with shares :math:`p_k` of the columns in the variance of
        the decoded effects of the block, (b,): below ``n_active`` where some matter little.
    cost
        What the supports of the columns cost in the prior, in nats, (b,): an empty column costs
        log 2, so that spare ones are nearly free.
    """

    block: Tensor
    n_columns: Tensor
    n_active: Tensor
    effective: Tensor
    cost: Tensor


@torch.no_grad()
def effective_factors(model: Any, data: Data | Batch) -> EffectiveFactors:
    """Count the factors that a fitted model uses, shared and specific.

    Give a model more columns than factors are expected, and read here how many it needed.

    Parameters
    ----------
    model
        Fitted model with sparse loadings.
    data
        Observations.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 3, for the
    prior; the effective number is that of Roy and Vetterli (2007).
    """
    batch = as_batch(data, model.loadings.device)
    z, gate = posterior(model, batch)["z"].mean, model.gate_of(batch)
    support = active_loadings(model.loadings, model.inclusion_probability)
    size = _effect_variances(model, z, gate, support.any(0))
    n_features, n_columns = support.shape
    cost = torch.tensor([column_cost(n, n_features) for n in support.sum(0).tolist()])
    given = getattr(model, "block", None)
    block = torch.full((n_columns,), -1) if given is None else given.cpu()
    rows = []
    for label in block.unique().tolist():
        chosen = block == label
        rows.append(
            (
                label,
                int(chosen.sum()),
                int(support.any(0).cpu()[chosen].sum()),
                _effective(size[chosen]),
                float(cost[chosen].sum()),
            )
        )
    labels, columns, active, effective, costs = (
        torch.tensor(value) for value in zip(*rows, strict=True)
    )
    return EffectiveFactors(labels, columns, active, effective, costs)


def _effect_variances(model: Any, z: Tensor, gate: Tensor, used: Tensor) -> Tensor:
    """Variance of the decoded effect of every column, summed over features, (K,), on the CPU."""
    found = torch.zeros(z.shape[1])
    for k in used.nonzero().flatten().tolist():
        found[k] = float(model.effect(z[gate[:, k]], [k]).var(0).sum())
    return found


def _effective(size: Tensor) -> float:
    share = size[size > 0] / size.sum()
    return float(torch.exp(-(share * share.log()).sum())) if len(share) else 0.0
