"""Data of sparse decoders: every feature depends on few factors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SparseTruth(NamedTuple):
    """Simulated data and what made them.

    Attributes
    ----------
    x
        Observations, (N, G).
    z
        Factors, (N, K).
    support
        Which features each factor reaches, (G, K) boolean.
    loadings
        Mask W, (G, K); zero outside the support.
    noise_scale
        Noise standard deviation per feature, (G,).
    """

    x: Tensor
    z: Tensor
    support: Tensor
    loadings: Tensor
    noise_scale: Tensor


def sparse_vae_toy(
    rho: float = 0.0, n: int = 1000, noise: float = 0.5, *, seed: int
) -> SparseTruth:
    r"""Seven nonlinear features of two correlated factors.

    .. math:: x = (z_1,\ 2z_1,\ 3z_1^2,\ 4z_2,\ 5z_2,\ 6\sin z_2,\ 7z_1z_2) + \text{noise}

    Parameters
    ----------
    rho
        Correlation of the factors, in (-1, 1).
    n
        Number of observations, N.
    noise
        Standard deviation of the noise.
    seed
        Seed of the generator.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 5.1.
    """
    if not -1 < rho < 1:
        raise ValueError(f"rho must lie in (-1, 1), got {rho}.")
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator)
    z = torch.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], dim=1)
    first, second = z.unbind(1)
    clean = [
        first,
        2 * first,
        3 * first**2,
        4 * second,
        5 * second,
        6 * second.sin(),
        7 * first * second,
    ]
    x = torch.stack(clean, dim=1) + noise * torch.randn(n, 7, generator=generator)
    support = torch.tensor([[1, 0]] * 3 + [[0, 1]] * 3 + [[1, 1]], dtype=torch.bool)
    loadings = support / support.sum(1, keepdim=True)
    return SparseTruth(x, z, support, loadings, torch.full((7,), noise))


def sparse_decoder(
    n: int,
    n_features: int,
    n_factors: int,
    *,
    n_hidden: int = 16,
    anchors: int = 2,
    share: float = 0.2,
    noise: float = 0.3,
    seed: int,
) -> SparseTruth:
    """Draw from a sparse decoder with a random network and anchor features.

    Parameters
    ----------
    n, n_features, n_factors
        Numbers of observations N, features G and factors K; G must hold the anchors.
    n_hidden
        Width of the random network.
    anchors
        Features that depend on one given factor only, for each factor.
    share
        Probability that any other feature depends on a given factor.
    noise
        Standard deviation of the noise.
    seed
        Seed of the generator.
    """
    if anchors * n_factors > n_features:
        raise ValueError(
            f"{anchors} anchors for each of {n_factors} factors need {anchors * n_factors} "
            f"features, got n_features = {n_features}."
        )
    generator = torch.Generator().manual_seed(seed)
    support = torch.rand(n_features, n_factors, generator=generator) < share
    for factor in range(n_factors):
        rows = slice(factor * anchors, (factor + 1) * anchors)
        support[rows] = torch.arange(n_factors) == factor
    size = 1 + torch.rand(n_features, n_factors, generator=generator)
    sign = 2.0 * torch.randint(0, 2, (n_features, n_factors), generator=generator) - 1
    loadings = size * sign * support
    first = torch.randn(n_hidden, n_factors, generator=generator)
    second = torch.randn(n_hidden, n_hidden, generator=generator) / math.sqrt(n_hidden)
    heads = torch.randn(n_features, n_hidden, generator=generator) / math.sqrt(n_hidden)
    z = torch.randn(n, n_factors, generator=generator)
    hidden = ((z.unsqueeze(1) * loadings) @ first.mT).relu()
    clean = ((hidden @ second.mT).relu() * heads).sum(-1)
    x = clean + noise * torch.randn(n, n_features, generator=generator)
    return SparseTruth(x, z, support, loadings, torch.full((n_features,), noise))
