"""Statistics of word counts: whether the words of a topic know the document they are in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy
from probinterp.criticism.discrepancies.placement import Placed
from probinterp.criticism.draws import Discrepancy, PredictiveDraw

Topics = Sequence[int] | np.ndarray | Tensor | None


def word_document_mutual_information(
    topics: Topics = None, labels: Sequence[str] | None = None
) -> Discrepancy:
    r"""Make the statistic "mutual information between word and document within each topic".

    .. math:: d_k(x) = \sum_{ij} p_k(i, j) \log \frac{p_k(i, j)}{p_k(i)\, p_k(j)}, \qquad
        p_k(i, j) = \frac{x_{ij} r_{jk}}{\sum_{lm} x_{lm} r_{mk}}

    with documents i, words j and the share :math:`r_{jk}` of the occurrences of word j that
    belong to topic k. A topic model says that, given the topic, a word does not know its
    document: the information exceeds that of replicates when words come in bursts, or when a
    topic lumps several subjects together. In nats, biased upwards in small samples, by the same
    amount for replicates of the same row lengths.

    Parameters
    ----------
    topics
        Topic of each word, integers (V,), or responsibilities :math:`r_{jk} \ge 0` (V, K); they
        must not depend on the compared data. Default: one topic with all words.
    labels
        Names of the K topics; default ``topic 0``, ``topic 1``, ...

    Returns
    -------
    Discrepancy
        Values of shape (K,) with ``axis`` "group", or a scalar without ``topics``; >= 0, and 0
        for a topic without occurrences.

    Raises
    ------
    ValueError
        If ``topics`` has the wrong shape or negative entries or ``labels`` another length than
        K; when called, if the data have another number of words.

    References
    ----------
    Bayesian checking for topic models (Mimno and Blei, 2011), section 4, where topics are
    assigned to single tokens; here they are assigned to words, so that the statistic is a fixed
    function of the counts.
    """
    shares = _Shares(topics)
    name = "word_document_mutual_information"
    if topics is None:
        return discrepancy(lambda x, draw: shares.information(x).squeeze(0), name=name)
    if labels is None:
        labels = [f"topic {k}" for k in range(shares.n_topics)]
    if len(labels) != shares.n_topics:
        raise ValueError(f"labels must name the {shares.n_topics} topics, got {len(labels)} names.")
    return discrepancy(
        lambda x, draw: shares.information(x), name=name, axis="group", labels=labels
    )


def instantaneous_mutual_information(
    topics: Topics = None, labels: Sequence[str] | None = None
) -> Discrepancy:
    r"""Make the statistic "what knowing the word tells about the document", word by word.

    .. math:: d_j(x) = \sum_k r_{jk} H_k(D) - H(D \mid j), \qquad
        H(D \mid j) = -\sum_i \frac{x_{ij}}{x_{\cdot j}} \log \frac{x_{ij}}{x_{\cdot j}}

    The entropy of the document of a token of topic k, less the same entropy once its word is
    known; weighted by the frequencies of the words it adds up to
    :func:`word_document_mutual_information`. Large for words that come in bursts.

    Parameters
    ----------
    topics
        As for :func:`word_document_mutual_information`.
    labels
        Names of the V words.

    Returns
    -------
    Discrepancy
        Values of shape (V,), with ``axis`` "feature", in nats; 0 for a word that does not occur.
        Negative for words spread more evenly than their topic.

    Raises
    ------
    ValueError
        If ``topics`` has the wrong shape or negative entries; when called, if the data have
        another number of words.

    References
    ----------
    Bayesian checking for topic models (Mimno and Blei, 2011), section 4.
    """
    shares = _Shares(topics)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return shares.instantaneous(x)

    name = "instantaneous_mutual_information"
    return discrepancy(statistic, name=name, axis="feature", labels=labels)


class _Shares:
    """Share of each topic in the occurrences of each word, rows that sum to one, (V, K)."""

    def __init__(self, topics: Topics) -> None:
        self.n_words: int | None = None
        weights = torch.ones(1, 1, dtype=torch.float64)
        if topics is not None:
            weights = _responsibilities(torch.as_tensor(topics))
            self.n_words = len(weights)
        self.n_topics = weights.shape[1]
        self._weights = Placed(weights)

    def beside(self, x: Tensor) -> Tensor:
        """Shares for counts ``x`` (N, V)."""
        if self.n_words is not None and x.shape[1] != self.n_words:
            raise ValueError(f"topics has {self.n_words} words, the data have {x.shape[1]}.")
        return self._weights.beside(x).expand(x.shape[1], self.n_topics)

    def information(self, x: Tensor) -> Tensor:
        """Mutual information of each topic, (K,)."""
        shares, occurrences = self.beside(x), x.sum(0)
        in_topic = occurrences @ shares
        given_word = (occurrences * _entropy(x)) @ shares
        given_word = torch.where(in_topic == 0, 0.0, given_word / in_topic)
        return (_entropy(x @ shares) - given_word).clamp(min=0)

    def instantaneous(self, x: Tensor) -> Tensor:
        """Information of each word, (V,)."""
        shares = self.beside(x)
        gained = shares @ _entropy(x @ shares) - _entropy(x)
        return torch.where(x.sum(0) == 0, 0.0, gained)


def _entropy(counts: Tensor) -> Tensor:
    """Entropy over rows of each column of non-negative numbers; 0 for columns of zeros."""
    totals = counts.sum(0)
    share = counts / torch.where(totals == 0, 1.0, totals)
    return -torch.special.xlogy(share, share).sum(0)


def _responsibilities(topics: Tensor) -> Tensor:
    """Rows that sum to one, (V, K), from assignments (V,) or weights (V, K)."""
    if topics.ndim not in (1, 2) or topics.numel() == 0:
        raise ValueError(
            "topics must be one integer per word, shape (V,), or responsibilities, shape (V, K), "
            f"got shape {tuple(topics.shape)}."
        )
    if topics.ndim == 1 and (topics.is_floating_point() or topics.is_complex()):
        raise ValueError(f"topics of shape (V,) must be integers, got {topics.dtype}.")
    if not topics.isfinite().all():
        raise ValueError("topics must be finite, got NaN or infinity.")
    if topics.min() < 0:
        raise ValueError(f"topics must not be negative, got {topics.min():.4g}.")
    if topics.ndim == 1:
        return torch.nn.functional.one_hot(topics.long()).double()
    weights = topics.double()
    totals = weights.sum(1, keepdim=True)
    if (totals == 0).any():
        word = int((totals == 0).nonzero()[0, 0])
        raise ValueError(
            f"every word needs a topic; the responsibilities of word {word} are all 0."
        )
    return weights / totals
