"""Documents of topic models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
