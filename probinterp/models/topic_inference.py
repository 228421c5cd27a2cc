"""Mean-field inference of topic models: word counts by topic, and where topics start from."""

from __future__ import annotations

import torch
from torch import Tensor

SURPLUS = 2  # topics at the start for each one that is wanted; too few would miss some for good
CLUSTER_ROUNDS = 10
SURPLUS_SWEEPS, FINAL_SWEEPS, INNER_SWEEPS = 20, 40, 5
CORPUS_SHARE = 0.05  # of the whole corpus in a starting topic: no word is impossible


def topic_counts(x: Tensor, topics: Tensor, prior: Tensor, n_sweeps: int) -> Tensor:
    r"""Expected number of words of each topic in each document, by coordinate ascent.

    .. math:: c_{ik} = \sum_v x_{iv} \frac{w_{ik} \beta_{kv}}{\sum_l w_{il} \beta_{lv}}, \quad
        w_{ik} = \exp \psi(\alpha_k + c_{ik})

    Parameters
    ----------
    x
        Word counts, (N, V).
    topics
        Distribution of the words in each topic, (K, V).
    prior
        Concentration of the Dirichlet prior of the proportions, (K,).
    n_sweeps
        Number of updates, from equal counts.

    Returns
    -------
    Tensor
        Counts c, (N, K); a row sums to the number of words of the document.

    References
    ----------
    Latent Dirichlet Allocation (Blei, Ng and Jordan, 2003), equations 6 and 7.
    """
    counts = x.sum(1, keepdim=True).expand(-1, len(topics)) / len(topics)
    for _ in range(n_sweeps):
        weight, ratio = _weights(x, counts, topics, prior)
        counts = weight * (ratio @ topics.mT)
    return counts


def starting_counts(x: Tensor, n_topics: int, prior: Tensor, smoothing: float) -> Tensor:
    """Expected number of times that each topic used each word, (K, V), found from data alone.

    Documents are clustered into twice as many groups as topics, the groups refined by variational
    expectation maximisation, the closest ones merged until ``n_topics`` are left, and these
    refined again. A start with as many groups as topics ends with two of them in one topic
    more often than not, and no gradient leads out of that.

    Parameters
    ----------
    x
        Word counts, (N, V).
    n_topics
        Number of topics, K.
    prior
        Concentration of the Dirichlet prior of the proportions, (K,).
    smoothing
        Concentration of the symmetric Dirichlet prior of the topics.
    """
    wide = prior.mean().expand(SURPLUS * n_topics)
    surplus = _maximise(x, _clustered(x, len(wide)), wide, smoothing, SURPLUS_SWEEPS)
    merged = merge_closest(surplus, n_topics)
    return _maximise(x, merged, prior, smoothing, FINAL_SWEEPS)


def merge_closest(counts: Tensor, n_topics: int) -> Tensor:
    """Merge rows of word counts (K', V) pairwise until ``n_topics`` are left.

    The pair is merged that adds least to the squared Hellinger distance of words to their topic,
    Ward's criterion.
    """
    while len(counts) > n_topics:
        size = counts.sum(1)
        root = _hellinger_rows(counts)
        weight = size.unsqueeze(1) * size / (size.unsqueeze(1) + size).clamp_min(1e-9)
        cost = (2 - 2 * root @ root.mT) * weight
        cost.fill_diagonal_(torch.inf)
        first, second = divmod(int(cost.argmin()), len(counts))
        joined = counts[first, None] + counts[second]
        counts = torch.cat(
            [counts[:first], joined, counts[first + 1 : second], counts[second + 1 :]]
        )
    return counts


def _weights(x: Tensor, counts: Tensor, topics: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of each topic in each document (N, K), and x over the mixture of topics (N, V)."""
    weight = torch.digamma(prior + counts).exp()
    return weight, x / (weight @ topics).clamp_min(torch.finfo(x.dtype).tiny)


def _maximise(x: Tensor, start: Tensor, prior: Tensor, smoothing: float, n_sweeps: int) -> Tensor:
    """Variational expectation maximisation; counts of the words in each topic, (K, V)."""
    by_word = start
    by_topic = x.sum(1, keepdim=True).expand(-1, len(start)) / len(start)
    for _ in range(n_sweeps):
        topics = (by_word + smoothing) / (by_word + smoothing).sum(1, keepdim=True)
        for _ in range(INNER_SWEEPS):
            weight, ratio = _weights(x, by_topic, topics, prior)
            by_topic = weight * (ratio @ topics.mT)
        by_word = topics * (weight.mT @ ratio)
    return by_word


def _clustered(x: Tensor, n_groups: int) -> Tensor:
    """Word counts of groups of documents, (K', V), by spherical k-means on Hellinger rows."""
    rows = _hellinger_rows(x)
    centers = _spread_rows(rows, n_groups)
    for _ in range(CLUSTER_ROUNDS):
        group = (rows @ torch.nn.functional.normalize(centers, dim=1).mT).argmax(1)
        centers = torch.zeros_like(centers).index_add_(0, group, rows)
    counts = x.new_zeros(n_groups, x.shape[1]).index_add_(0, group, x)
    # an empty group starts as the whole corpus, nudged away from its equals
    return counts + CORPUS_SHARE * x.sum(0) * (1 + 0.1 * torch.rand_like(counts)) / n_groups


def _spread_rows(rows: Tensor, n_chosen: int) -> Tensor:
    """Rows far apart, (K', V), as in k-means++ (Arthur and Vassilvitskii, 2007)."""
    chosen = [int(torch.randint(len(rows), ()))]
    distance = rows.new_full((len(rows),), torch.inf)
    for _ in range(n_chosen - 1):
        distance = torch.minimum(distance, 1 - rows @ rows[chosen[-1]])
        chosen.append(int(torch.multinomial(distance.clamp_min(1e-6).square(), 1)))
    return rows[chosen]


def _hellinger_rows(counts: Tensor) -> Tensor:
    """Square roots of the shares of each word in its row; an empty row stays zero."""
    return (counts / counts.sum(1, keepdim=True).clamp_min(1e-9)).sqrt()
