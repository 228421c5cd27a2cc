"""Data with known truth, one generator per model."""

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


class FactorAnalysisTruth(NamedTuple):
    """Simulated linear factor data: observations, factors, loadings, noise scale."""

    x: Tensor
    z: Tensor
    loadings: Tensor
    noise_scale: Tensor


def factor_analysis(
    n: int, n_features: int, n_factors: int, *, noise: float = 0.5, seed: int
) -> FactorAnalysisTruth:
    r"""Linear factor analysis, :math:`x = W z + \epsilon`, with standard normal loadings."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(n_features, n_factors, generator=generator)
    z = torch.randn(n, n_factors, generator=generator)
    x = z @ loadings.mT + noise * torch.randn(n, n_features, generator=generator)
    return FactorAnalysisTruth(x, z, loadings, torch.full((n_features,), noise))


class CountTruth(NamedTuple):
    """Simulated counts: observations, factors, support, size factors, mean profile."""

    x: Tensor
    z: Tensor
    support: Tensor
    size_factor: Tensor
    log_mean: Tensor


def sparse_counts(
    n: int,
    n_features: int,
    n_factors: int,
    *,
    inverse_dispersion: float = 5.0,
    anchors: int = 4,
    share: float = 0.1,
    seed: int,
) -> CountTruth:
    r"""Negative binomial counts whose log means are sparse in the factors.

    .. math:: x_{ij} \sim \mathrm{NB}(s_i \exp(\ell_j + w_j^\top z_i),\ r)

    Library sizes are log-normal with a log standard deviation of 0.3 and median 1.
    """
    shape = sparse_decoder(2, n_features, n_factors, anchors=anchors, share=share, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    z = torch.randn(n, n_factors, generator=generator)
    size_factor = (0.3 * torch.randn(n, generator=generator)).exp()
    level = 0.5 + torch.randn(n_features, generator=generator)
    log_mean = level + 0.4 * z @ shape.loadings.mT
    mean = size_factor.unsqueeze(1) * log_mean.clamp(max=6).exp()
    concentration = torch.full_like(mean, inverse_dispersion)
    gamma = torch._standard_gamma(concentration, generator=generator)
    x = torch.poisson(gamma * mean / inverse_dispersion, generator=generator)
    return CountTruth(x, z, shape.support, size_factor, log_mean)


class TopicTruth(NamedTuple):
    """Simulated documents: word counts (N, V), topic proportions (N, K), topics (K, V)."""

    x: Tensor
    proportions: Tensor
    topics: Tensor


def topics(
    n: int,
    *,
    n_features: int = 500,
    n_topics: int = 20,
    proportion_concentration: float = 0.1,
    topic_concentration: float = 0.05,
    length: float = 100.0,
    burst_concentration: float | None = None,
    seed: int,
) -> TopicTruth:
    r"""Documents of latent Dirichlet allocation, with words that may come in bursts.

    .. math:: \beta_k \sim \mathrm{Dir}(\eta 1_V), \quad \theta_i \sim \mathrm{Dir}(\alpha 1_K),
        \quad n_i \sim \mathrm{Pois}(\ell), \quad x_i \sim \mathrm{Mult}(n_i, B_i^\top \theta_i)

    where :math:`B_i = \beta`, or with bursts :math:`B_{ik} \sim \mathrm{Dir}(b \beta_k)`: each
    document uses few of the words of a topic, and those often. To plant too few topics, fit fewer
    than ``n_topics``.

    Parameters
    ----------
    n
        Number of documents, N.
    n_features, n_topics
        Numbers of words V and topics K.
    proportion_concentration, topic_concentration
        Concentrations alpha and eta.
    length
        Expected number of words in a document.
    burst_concentration
        Concentration b, smaller for stronger bursts; None for no bursts.
    seed
        Seed of the generator.

    References
    ----------
    Modeling word burstiness using the Dirichlet distribution (Madsen, Kauchak and Elkan, 2005),
    section 3.
    """
    generator = torch.Generator().manual_seed(seed)
    beta = _dirichlet(torch.full((n_topics, n_features), topic_concentration), generator)
    theta = _dirichlet(torch.full((n, n_topics), proportion_concentration), generator)
    if burst_concentration is None:
        words = theta @ beta
    else:
        words = torch.zeros(n, n_features)
        for share, topic in zip(theta.T, beta, strict=True):
            own = _dirichlet((burst_concentration * topic).expand(n, -1), generator)
            words += share.unsqueeze(1) * own
    total = torch.poisson(torch.full((n, 1), float(length)), generator=generator)
    longest = max(1, int(total.max()))
    drawn = torch.multinomial(words, longest, replacement=True, generator=generator)
    written = (torch.arange(longest) < total).float()
    x = torch.zeros(n, n_features).scatter_add_(1, drawn, written)
    return TopicTruth(x, theta, beta)


def _dirichlet(concentration: Tensor, generator: torch.Generator) -> Tensor:
    # in double precision: gamma variables of small shape underflow, and a row of zeros has no sum
    shape = concentration.double().clamp_min(1e-12)
    gamma = torch._standard_gamma(shape, generator=generator)
    return (gamma / gamma.sum(-1, keepdim=True)).float()
