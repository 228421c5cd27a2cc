"""How much of the variance within each study shared factors, its own factors and noise explain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from probinterp.counts import MultinomialCounts, NegativeBinomial, RoundedLogNormal
from probinterp.inference.data import ArrayData, Data, to_device
from probinterp.inference.posterior import posterior
from probinterp.inference.seeding import seeded
from probinterp.models.base import Batch
from probinterp.models.blocks import SHARED

ROWS = 4096  # observations at a time when studies are looked up


class VarianceExplained(NamedTuple):
    r"""Shares of the variance of the linear predictor and its noise within each study.

    Attributes
    ----------
    shares
        Shared factors, specific factors and noise, (M, 3); every row sums to 1.
    factors
        Variance of the decoded effect of each column of the model over the total, (M, K); 0 for
        columns that a study does not have. Effects that act together do not add up to the blocks.
    total
        Variance that the shares refer to, summed over features, (M,).
    """

    shares: Tensor
    factors: Tensor
    total: Tensor


@torch.no_grad()
def variance_explained(
    model: Any, data: Data | Batch, *, n_samples: int = 1000, seed: int = 0
) -> VarianceExplained:
    r"""Share of a fitted model's variance that blocks, factors and noise have in each study.

    With :math:`v(\cdot)` the variance over draws of z within study m, summed over features, and
    :math:`\eta` the linear predictor, the shared block has

    .. math:: \tfrac12\big[v(\eta(z)) + v(\eta(z^S)) - v(\eta(z^m))\big]

    where :math:`z^S` has the specific and :math:`z^m` the shared columns at zero; the specific
    block has the mirror image. Both add up to :math:`v(\eta(z))`, and where the decoder is linear
    and blocks are uncorrelated they are :math:`v(\eta(z^S))` and :math:`v(\eta(z^m))`. A share is
    negative only where a block cancels the other. A factor has the variance of its decoded effect,
    :math:`v(\eta(z) - \eta(z)|_{z_k=0})`.

    Noise is :math:`\mathrm{Var}(x \mid z)` for normal features. For counts it is on the log scale,

    .. math:: \log\!\Big(1 + \frac{\mathrm{Var}(x \mid z)}{E[x \mid z]^2}\Big), \quad
        \text{negative binomial: } \log\!\Big(1 + \frac1\mu + \frac1r\Big),

    the log variance of a log-normal with the same two moments; to first order it is the delta
    method's :math:`1/\mu + 1/r`, which has no bound as counts become rare. Rounded log-normal
    counts have :math:`\sigma^2`, binary features :math:`\pi^2/3`.

    Parameters
    ----------
    model
        Fitted model with ``decode``, ``likelihood`` and a site ``"z"``. Without ``block`` all
        factors count as shared.
    data
        Observations of all studies; without ``study`` they count as one.
    n_samples
        Draws of z in each study, from the posteriors of observations spread evenly over it. The
        relative error of a variance is about :math:`\sqrt{2/S}`, 4.5 % for 1000.
    seed
        Seed of the draws.

    Raises
    ------
    ValueError
        If ``n_samples`` is below 2 or a study has no observation.
    TypeError
        If the model cannot decode factors or the noise of its likelihood is not known.

    References
    ----------
    The coefficient of determination R2 and intra-class correlation coefficient from generalized
    linear mixed-effects models revisited and expanded (Nakagawa, Johnson and Schielzeth, 2017), for
    the noise; the split between two blocks is their Shapley value (Shapley, 1953).

    Notes
    -----
    Levels of studies do not vary within a study; shifts of technical batches are left out.
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be 2 or more, got {n_samples}.")
    if not (callable(getattr(model, "decode", None)) and hasattr(model, "likelihood")):
        raise TypeError(f"{type(model).__name__} has no decode(z) and likelihood to take apart.")
    source = ArrayData.of(data) if isinstance(data, Batch) else data
    study = _studies(source)
    n_studies = getattr(model, "n_studies", int(study.max()) + 1)
    device, parts = next(model.parameters()).device, []
    with seeded(seed, device):
        for m in range(n_studies):
            rows = (study == m).nonzero().flatten()
            if len(rows) == 0:
                raise ValueError(f"study {m} of {n_studies} has no observation in the data.")
            spread = rows[torch.arange(n_samples) * len(rows) // n_samples]
            parts.append(_take_apart(model, to_device(source.batch(spread), device)))
    shared, specific, noise, effects = (torch.stack(part) for part in zip(*parts, strict=True))
    total = shared + specific + noise
    shares = torch.stack([shared, specific, noise], dim=1) / total.unsqueeze(1)
    return VarianceExplained(shares.cpu(), (effects / total.unsqueeze(1)).cpu(), total.cpu())


def noise_variance(given_z: TorchDistribution) -> Tensor:
    """Variance of the noise on the scale of the linear predictor, broadcasts to (N, G).

    Parameters
    ----------
    given_z
        Distribution of the features given the factors.

    Raises
    ------
    TypeError
        If the distribution is none of those that likelihoods of this package return.
    """
    if isinstance(given_z, RoundedLogNormal):
        return given_z.scale.square().expand_as(given_z.loc)
    if isinstance(given_z, NegativeBinomial | MultinomialCounts):
        return (given_z.variance / given_z.mean / given_z.mean).log1p()
    base = getattr(given_z, "base_dist", None)
    if isinstance(base, dist.Bernoulli):
        return torch.full_like(base.mean, math.pi**2 / 3)
    if isinstance(base, dist.Normal):
        return base.variance
    raise TypeError(f"the noise of {type(given_z).__name__} on the linear predictor is not known.")


def _take_apart(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Variances of shared and specific block and noise, scalars, and of the factors, (K,)."""
    decode: Callable[[Tensor], Tensor] = model.decode
    z = posterior(model, batch)["z"].sample()
    block = getattr(model, "block", None)
    if not isinstance(block, Tensor):
        block = torch.full((z.shape[1],), SHARED, device=z.device)
    whole, shared = decode(z), block == SHARED
    signal, by_shared, by_specific = (
        _variance(eta) for eta in (whole, decode(z * shared), decode(z * ~shared))
    )
    effects = torch.zeros(len(block), dtype=signal.dtype, device=z.device)
    for k in z.any(0).nonzero().flatten().tolist():
        without = z.clone()
        without[:, k] = 0
        effects[k] = _variance(whole - decode(without))
    noise = noise_variance(model.likelihood(whole, batch._replace(mask=None)))
    split = (by_shared - by_specific) / 2
    return signal / 2 + split, signal / 2 - split, noise.double().mean(0).sum(), effects


def _variance(eta: Tensor) -> Tensor:
    return eta.double().var(0).sum()


def _studies(source: Data) -> Tensor:
    """Study of every observation, (N,) on the CPU; 0 where the data do not say."""
    parts = []
    for index in torch.arange(len(source)).split(ROWS):
        study = source.batch(index).study
        parts.append(torch.zeros_like(index) if study is None else study.cpu())
    return torch.cat(parts)
