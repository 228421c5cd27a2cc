"""Latent Dirichlet allocation: documents as mixtures of topics."""

from __future__ import annotations

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probinterp.likelihoods import MultinomialLikelihood
from probinterp.models.base import (
    OBS_SITE,
    Batch,
    ProbabilisticModel,
    observations,
    require_positive,
)
from probinterp.models.topic_inference import starting_counts, topic_counts

INITIAL_TRUST = 0.4  # logit of the share of a document's words that counts as evidence


class LatentDirichletAllocation(ProbabilisticModel):
    r"""Latent Dirichlet allocation with a posterior over topics.

    .. math:: \beta_k \sim \mathrm{Dir}(\eta 1_V), \quad \theta_i \sim \mathrm{Dir}(\alpha 1_K),
        \quad x_i \mid \theta_i, \beta \sim \mathrm{Mult}(n_i, \beta^\top \theta_i)

    .. math:: q(\beta_k) = \mathrm{Dir}(\lambda_k), \quad
        q(\theta_i \mid x_i) = \mathrm{Dir}(\alpha + \tau\, c(x_i; E\beta))

    The assignment of every word to a topic is summed over. c are the expected numbers of words of
    each topic in a document, found by coordinate ascent at the mean topics, so that nothing is
    stored per document and there is no network whose topics could collapse.

    Parameters
    ----------
    n_features
        Number of words in the vocabulary, V.
    n_topics
        Number of topics, K.
    proportion_concentration
        Concentration alpha of the proportions of topics in a document, positive.
    topic_concentration
        Concentration eta of the words in a topic, positive.
    n_sweeps
        Updates of the proportions of a document, at least 1.

    References
    ----------
    Latent Dirichlet Allocation (Blei, Ng and Jordan, 2003), section 5; Autoencoding Variational
    Inference for Topic Models (Srivastava and Sutton, 2017), section 3.1, for the likelihood with
    the assignments summed over.

    Notes
    -----
    Mean-field inference of word assignments makes q(theta) too narrow, because it treats a
    guessed assignment as seen; the share :math:`\tau \in (0, 1)` of the words that counts as
    evidence is learned with the topics and repairs most of it. No gradient flows through c, which
    nearly maximises the bound as it is. The topics start from merged clusters of documents. Fit
    with a large learning rate that decays, for instance Adam at 0.1 with :func:`cosine` for a
    hundred steps or more: log concentrations have far to go.
    """

    proportion_prior: Tensor
    topic_prior: Tensor

    def __init__(
        self,
        n_features: int,
        n_topics: int,
        *,
        proportion_concentration: float = 0.1,
        topic_concentration: float = 0.05,
        n_sweeps: int = 20,
    ) -> None:
        super().__init__()
        require_positive(n_features=n_features, n_topics=n_topics, n_sweeps=n_sweeps)
        _require_concentration(
            proportion_concentration=proportion_concentration,
            topic_concentration=topic_concentration,
        )
        self.likelihood = MultinomialLikelihood(n_features)
        self.log_concentration = nn.Parameter(0.1 * torch.randn(n_topics, n_features))  # log lambda
        self.trust_logit = nn.Parameter(torch.tensor(INITIAL_TRUST))
        self.n_sweeps, self.topic_concentration = n_sweeps, topic_concentration
        topic_prior = torch.full((n_topics, n_features), topic_concentration)
        self.register_buffer("topic_prior", topic_prior, persistent=False)
        proportion_prior = torch.full((n_topics,), proportion_concentration)
        self.register_buffer("proportion_prior", proportion_prior, persistent=False)

    def model(self, batch: Batch, n_total: int | None = None) -> None:
        """Generative program; sites ``topics``, ``theta`` and ``x``."""
        topics = pyro.sample("topics", dist.Dirichlet(self.topic_prior).to_event(1))
        with observations(batch, n_total):
            theta = pyro.sample("theta", dist.Dirichlet(self.proportion_prior))
            words = self.likelihood(log_word_probabilities(theta, topics), batch)
            pyro.sample(OBS_SITE, words, obs=batch.x)

    def guide(self, batch: Batch, n_total: int | None = None) -> None:
        """Dirichlet posteriors of ``topics`` and ``theta``."""
        if batch.mask is not None:
            raise ValueError(
                "proportions are inferred from the totals of documents, which takes no batch.mask; "
                "hold out part of each document's words instead."
            )
        pyro.sample("topics", dist.Dirichlet(self.log_concentration.exp()).to_event(1))
        with observations(batch, n_total):
            pyro.sample("theta", dist.Dirichlet(self.proportion_concentrations(batch.x)))

    @property
    def topics(self) -> Tensor:
        """Posterior mean of the distribution of words in each topic, (K, V)."""
        return self.log_concentration.log_softmax(-1).exp()

    def proportion_concentrations(self, x: Tensor) -> Tensor:
        """Concentrations of the posterior of the proportions of documents ``x`` (N, V), (N, K)."""
        with torch.no_grad(), _full_precision(x):
            counts = topic_counts(x, self.topics, self.proportion_prior, self.n_sweeps)
        return self.proportion_prior + self.trust_logit.sigmoid() * counts

    @torch.no_grad()
    def initialize(self, batch: Batch, n_total: int) -> None:
        """Start from topics that were found in the batch by variational EM."""
        if (batch.x < 0).any():
            raise ValueError(f"x must hold word counts, got the smallest value {batch.x.min()}.")
        n_topics = len(self.log_concentration)
        prior, smoothing = self.proportion_prior, self.topic_concentration
        counts = starting_counts(batch.x, n_topics, prior, smoothing) * (n_total / len(batch.x))
        self.log_concentration.copy_((smoothing + self.trust_logit.sigmoid() * counts).log())


def log_word_probabilities(proportions: Tensor, topics: Tensor) -> Tensor:
    """Log probability of each word in each document, (N, V), never minus infinity."""
    with _full_precision(topics):
        mixed = proportions @ topics
    return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()


def _full_precision(x: Tensor) -> torch.autocast:
    """Context without autocast: probabilities of rare words do not survive bfloat16."""
    return torch.autocast(x.device.type, enabled=False)


def _require_concentration(**concentrations: float) -> None:
    for name, value in concentrations.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
