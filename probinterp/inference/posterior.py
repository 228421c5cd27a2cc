"""What a fitted model found: posteriors and factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from probinterp.inference.data import ArrayData, Data, to_device
from probinterp.inference.sites import sites_of
from probinterp.models.base import Batch, ProbabilisticModel

ACTIVE_LOADING = 1e-2
EFFECT_ROWS = 2000  # observations that decoded effects are averaged over


class Factors(NamedTuple):
    r"""Factors of a data set, columns ordered by the number of features they reach.

    Attributes
    ----------
    scores
        Posterior means of the factors, (N, K').
    scales
        Posterior standard deviations of the factors, (N, K').
    loadings
        Loadings or mask W, (G, K'), signed so that the largest effect of each factor is positive
        (the largest loading, where there are no effects); None where the model
        has no site ``"W"`` or parameter ``loadings``.
    inclusion
        Probability that a loading comes from the slab, (G, K'), or None.
    effects
        Decoded effect of each factor on each feature in units of its noise, (G, K'), see
        :func:`decoded_effects`; None where the model cannot decode factors.
    columns
        Index of each factor in the model, (K',); empty columns are dropped.
    """

    scores: Tensor
    scales: Tensor
    loadings: Tensor | None
    inclusion: Tensor | None
    effects: Tensor | None
    columns: Tensor

    @property
    def names(self) -> list[str]:
        """``factor_1`` and so on, in the order of the columns."""
        return [f"factor_{i + 1}" for i in range(len(self.columns))]

    @property
    def support(self) -> Tensor | None:
        """Which features a factor reaches, (G, K') boolean: active and more likely slab."""
        if self.loadings is None:
            return None
        active = self.loadings.abs() > ACTIVE_LOADING
        return active if self.inclusion is None else active & (self.inclusion > 0.5)


@torch.no_grad()
def posterior(model: ProbabilisticModel, batch: Batch) -> dict[str, TorchDistribution]:
    """Variational posterior of every latent site, read from the guide's trace.

    Parameters
    ----------
    model
        Fitted model.
    batch
        Observations to condition on, on any device; sparse rows are accepted.

    Returns
    -------
    dict
        Distribution per site name, for example ``posterior(model, batch)["z"].mean`` (N, K).
    """
    batch = to_device(batch, next(model.parameters()).device)
    with torch.random.fork_rng():
        return {name: site.distribution for name, site in sites_of(model.guide, batch).items()}


@torch.no_grad()
def factors(model: ProbabilisticModel, data: Data | Batch, *, batch_size: int = 4096) -> Factors:
    """Scores, loadings and inclusion probabilities, ready to be read.

    Columns without an active feature are dropped, the others ordered by how many features they
    reach, and signs chosen so that the feature that a factor moves most rises with its score;
    flipping the sign of a factor and its column changes no prediction.

    Parameters
    ----------
    model
        Fitted model with a local site ``"z"``.
    data
        Observations whose factors are wanted.
    batch_size
        Observations at a time.

    Returns
    -------
    Factors
        On the CPU.
    """
    source = ArrayData.of(data) if isinstance(data, Batch) else data
    parts = []
    for index in torch.arange(len(source)).split(batch_size):
        z = posterior(model, source.batch(index))["z"]
        parts.append((z.mean.cpu(), z.variance.sqrt().cpu()))
    scores, scales = (torch.cat(values) for values in zip(*parts, strict=True))
    first = source.batch(torch.arange(min(len(source), EFFECT_ROWS)))
    loadings, effects = _loadings(model), decoded_effects(model, scores[:EFFECT_ROWS], first)
    columns = torch.arange(scores.shape[1])
    found = Factors(scores, scales, loadings, _inclusion(model), effects, columns)
    return found if loadings is None else _ordered(found)


@torch.no_grad()
def decoded_effects(model: ProbabilisticModel, scores: Tensor, batch: Batch) -> Tensor | None:
    r"""Effect of each factor on each feature in units of its noise, (G, K), on the CPU.

    .. math:: \mathrm{sign}(\mathrm{cov}_i(d_{ijk}, z_{ik}))\ \mathrm{rms}_i(d_{ijk}), \quad
              d_{ijk} = \frac{E[x_{ij} \mid z_i] - E[x_{ij} \mid z_i, z_{ik} = 0]}
                             {\mathrm{sd}(x_{ij} \mid z_i)}

    Unlike a mask entry it says how much a feature moves: heads and trunk of the decoder scale
    the mask freely, and a change of a rare count is worth little. None where the model has no
    method ``decode(z)`` or no ``likelihood``.
    """
    decode, likelihood = (getattr(model, name, None) for name in ("decode", "likelihood"))
    if decode is None or likelihood is None:
        return None
    batch = to_device(batch, next(model.parameters()).device)
    scores = scores.to(batch.x.device)
    whole, columns = likelihood(decode(scores), batch), []
    for factor in range(scores.shape[1]):
        without = scores.clone()
        without[:, factor] = 0.0
        moved = (whole.mean - likelihood(decode(without), batch).mean) / whole.variance.sqrt()
        score = scores[:, factor] - scores[:, factor].mean()
        columns.append(torch.sign(score @ moved) * moved.square().mean(0).sqrt())
    return torch.stack(columns, dim=1).cpu()


def _loadings(model: ProbabilisticModel) -> Tensor | None:
    loadings = getattr(model, "loadings", None)
    return loadings.detach().cpu() if isinstance(loadings, Tensor) else None


def _inclusion(model: ProbabilisticModel) -> Tensor | None:
    inclusion = getattr(model, "inclusion_probability", None)
    return inclusion.detach().cpu() if isinstance(inclusion, Tensor) else None


def _ordered(found: Factors) -> Factors:
    support, loadings = found.support, found.loadings
    assert support is not None
    assert loadings is not None
    size = support.sum(0)
    order = torch.argsort(size, descending=True, stable=True)
    kept = order[size[order] > 0]
    shown = loadings if found.effects is None else found.effects
    largest = shown.gather(0, shown.abs().argmax(0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0)[kept]
    return Factors(
        found.scores[:, kept] * sign,
        found.scales[:, kept],
        loadings[:, kept] * sign,
        None if found.inclusion is None else found.inclusion[:, kept],
        None if found.effects is None else found.effects[:, kept] * sign,
        kept,
    )
