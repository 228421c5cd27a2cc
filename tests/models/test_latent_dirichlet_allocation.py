"""Latent Dirichlet allocation: recovery, peers, brute force, and predictive checks of it."""

import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.special import digamma
from sklearn.decomposition import LatentDirichletAllocation as SklearnLDA

from probinterp import simulate
from probinterp.criticism import discrepancies, pop_pc, pop_pc_suite, split_counts
from probinterp.inference import ArrayData, cosine, fit, load, posterior, predictive_draws, save
from probinterp.models import Batch, LatentDirichletAllocation
from probinterp.models.latent_dirichlet_allocation import log_word_probabilities
from probinterp.models.topic_inference import merge_closest, starting_counts, topic_counts

N_FEATURES, N_TOPICS = 200, 8


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def fitted_to(x, n_topics=N_TOPICS, device="cpu"):
    torch.manual_seed(0)
    model = LatentDirichletAllocation(x.shape[1], n_topics)
    settings = {"batch_size": 1000, "optimizer": adam, "schedule": cosine, "progress": False}
    fit(model, ArrayData(x), max_epochs=60, device=device, **settings)
    return model


@pytest.fixture(scope="module")
def truth():
    return simulate.topics(700, n_features=N_FEATURES, n_topics=N_TOPICS, length=80, seed=3)


@pytest.fixture(scope="module")
def model(truth, device):
    return fitted_to(truth.x[:500], device=device)


def matched(found, true):
    """Cosines of matched topics and where each true topic was found."""
    unit = torch.nn.functional.normalize
    cosines = unit(true, dim=1) @ unit(found, dim=1).mT
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return cosines[rows, columns], columns


def perplexity(x, proportions, topics):
    return math.exp(-float((x * (proportions @ topics).log()).sum() / x.sum()))


@torch.no_grad()
def test_topics_and_proportions_are_recovered(model, truth):
    cosines, order = matched(model.topics, truth.topics)
    assert cosines.min() > 0.98
    theta = posterior(model, Batch(truth.x[500:]))["theta"].mean[:, order]
    error = (theta - truth.proportions[500:]).abs().mean()
    assert error < 0.03


@torch.no_grad()
def test_completion_perplexity_is_no_worse_than_scikit_learns(model, truth):
    split = split_counts(truth.x[500:], 0.5, seed=0, fixed_totals=True)
    other = SklearnLDA(
        N_TOPICS, doc_topic_prior=0.1, topic_word_prior=0.05, max_iter=60, random_state=0
    ).fit(truth.x[:500].numpy())
    topics = torch.as_tensor(other.components_).float()
    topics = topics / topics.sum(1, keepdim=True)
    theirs = torch.as_tensor(other.transform(split.observed.numpy())).float()
    ours = posterior(model, Batch(split.observed))["theta"].mean
    found = perplexity(split.heldout, ours, model.topics)
    assert found < 1.01 * perplexity(split.heldout, theirs, topics)
    best = perplexity(split.heldout, truth.proportions[500:], truth.topics.clamp_min(1e-30))
    assert best < found < 1.2 * best


@torch.no_grad()
def test_posterior_of_topics_covers_the_truth(model, truth):
    _, order = matched(model.topics, truth.topics)
    q = dist.Dirichlet(model.log_concentration.exp()[order])
    seen = q.mean > 0.005  # chosen by the estimate: choosing by the truth would bias the errors
    error = ((truth.topics - q.mean) / q.variance.sqrt())[seen]
    assert abs(error.mean()) < 0.25
    assert 0.8 < error.std() < 1.35


def test_counts_by_topic_equal_a_loop_over_words():
    torch.manual_seed(2)
    x = torch.poisson(torch.full((3, 5), 2.0)).double()
    topics = torch.rand(2, 5, dtype=torch.float64)
    topics /= topics.sum(1, keepdim=True)
    prior = torch.tensor([0.3, 0.7], dtype=torch.float64)
    counts = np.repeat(x.sum(1, keepdim=True).numpy() / 2, 2, axis=1)
    for _ in range(4):
        updated = np.zeros_like(counts)
        for i in range(3):
            for v in range(5):
                weight = np.exp(digamma(prior.numpy() + counts[i])) * topics[:, v].numpy()
                updated[i] += x[i, v].item() * weight / weight.sum()
        counts = updated
    assert topic_counts(x, topics, prior, 4).numpy() == pytest.approx(counts, rel=1e-10)


def test_likelihood_sums_over_the_topic_of_every_word():
    theta, topics = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    logits = log_word_probabilities(theta, topics)
    assert logits.exp()[0].tolist() == pytest.approx([0.2, 0.275, 0.525])
    model = LatentDirichletAllocation(3, 2)
    x = torch.tensor([[2.0, 1.0, 3.0]])
    found = model.likelihood(logits, Batch(x)).log_prob(x).item()
    assert found == pytest.approx(
        stats.multinomial(6, [0.2, 0.275, 0.525]).logpmf([2, 1, 3]), rel=1e-5
    )


def test_merging_joins_the_closest_rows_first():
    counts = torch.tensor([[9.0, 1.0, 0.0], [0.0, 2.0, 8.0], [8.0, 1.0, 1.0], [0.0, 1.0, 9.0]])
    assert merge_closest(counts, 2).tolist() == [[17.0, 2.0, 1.0], [0.0, 3.0, 17.0]]


@pytest.mark.parametrize("seed", range(5))
def test_start_finds_every_topic(seed):
    corpus = simulate.topics(400, n_features=N_FEATURES, n_topics=N_TOPICS, seed=seed)
    prior = torch.full((N_TOPICS,), 0.1)
    cosines, _ = matched(starting_counts(corpus.x, N_TOPICS, prior, 0.05), corpus.topics)
    assert cosines.min() > 0.95


def test_start_copes_with_fewer_documents_than_topics():
    x = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    counts = starting_counts(x, 4, torch.full((4,), 0.1), 0.05)
    assert counts.shape == (4, 3)
    assert counts.sum(0).tolist() == pytest.approx([3.0, 0.0, 1.0], abs=1e-5)


def test_empty_documents_have_the_prior(model):
    theta = posterior(model, Batch(torch.zeros(2, N_FEATURES)))["theta"]
    torch.testing.assert_close(theta.concentration, torch.full((2, N_TOPICS), 0.1))


def test_negative_counts_are_refused(model):
    with pytest.raises(ValueError, match="word counts, got the smallest value -1"):
        model.initialize(Batch(-torch.ones(3, N_FEATURES)), 3)


def test_masks_are_refused(model):
    batch = Batch(torch.ones(2, N_FEATURES), mask=torch.ones(2, N_FEATURES, dtype=torch.bool))
    with pytest.raises(ValueError, match="hold out part of each document's words"):
        posterior(model, batch)


@pytest.mark.parametrize("name", ["proportion_concentration", "topic_concentration"])
def test_concentrations_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        LatentDirichletAllocation(5, 2, **{name: 0.0})


@torch.no_grad()
def test_saved_model_has_the_same_posterior(model, truth, tmp_path):
    save(model, tmp_path / "topics")
    again = load(tmp_path / "topics")
    batch = Batch(truth.x[:5])
    torch.testing.assert_close(again.topics, model.topics)
    torch.testing.assert_close(
        posterior(again, batch)["theta"].mean, posterior(model, batch)["theta"].mean
    )


def test_replicates_have_the_row_lengths_and_topic_uncertainty(model, truth):
    batch = Batch(truth.x[500:])
    draws = predictive_draws(model, batch, 3, seed=1)
    assert not draws.point_estimate
    topics = [draw.unknowns["topics"] for draw in draws]
    assert not torch.equal(topics[0], topics[1])
    for draw in draws:
        assert torch.equal(draw.replicate().sum(1), batch.x.sum(1))


def test_completion_infers_proportions_from_the_observed_half_alone(model, truth):
    split = split_counts(truth.x[500:], 0.5, seed=1, fixed_totals=True)
    seen, new = Batch(split.observed), Batch(split.heldout)
    draws = predictive_draws(model, new, 100, local="observed", observed=seen, seed=2)
    assert draws.local == "observed"
    mean = posterior(model, seen)["theta"].mean @ model.topics
    law = draws.reference.likelihood(split.heldout)
    torch.testing.assert_close(law.mean, new.x.sum(1, keepdim=True) * mean, rtol=1e-4, atol=1e-6)
    total = torch.zeros_like(mean)
    for draw in draws:
        replicate = draw.replicate()
        assert torch.equal(replicate.sum(1), new.x.sum(1))
        total += replicate
    # average of 100 replicates with 40 words each: standard deviation of a share below .01
    assert (total / 100 - law.mean).abs().mean() < 0.05
    assert (total / 100).sum() == pytest.approx(new.x.sum().item())


def checks(x, observed_docs, **options):
    """p-values of one fit on new documents."""
    model = fitted_to(x[:observed_docs], **options)
    batch = Batch(x[observed_docs:])
    suite = {
        "likelihood": discrepancies.mean_negative_log_likelihood,
        "information": discrepancies.word_document_mutual_information(),
    }
    found = pop_pc_suite(predictive_draws(model, batch, 99, seed=5), batch.x, suite, seed=6)
    return {name: result.p_two_sided.item() for name, result in found.items()}


def test_bursts_and_too_few_topics_are_found(truth):
    bursty = simulate.topics(
        700,
        n_features=N_FEATURES,
        n_topics=N_TOPICS,
        length=80,
        burst_concentration=30.0,
        seed=3,
    )
    assert checks(bursty.x, 500)["information"] <= 0.02
    assert checks(truth.x, 500, n_topics=3)["information"] <= 0.02
    assert min(checks(truth.x, 500).values()) > 0.02


def completion_effect(corpus, trust):
    """Effect size of the log likelihood of completed documents, topics known."""
    model = LatentDirichletAllocation(N_FEATURES, N_TOPICS)
    with torch.no_grad():
        model.log_concentration.copy_((1e7 * corpus.topics.clamp_min(1e-10)).log())
        model.trust_logit.copy_(torch.tensor(trust).logit())
    split = split_counts(corpus.x, 0.5, seed=1, fixed_totals=True)
    seen, new = Batch(split.observed), Batch(split.heldout)
    draws = predictive_draws(model, new, 60, local="observed", observed=seen, seed=2)
    return pop_pc(draws, new.x, discrepancies.mean_negative_log_likelihood, seed=3).z.item()


def test_completion_needs_the_learned_trust(model):
    """With a guessed assignment taken as seen, tau = 1, the right model fails its own check."""
    corpus = simulate.topics(400, n_features=N_FEATURES, n_topics=N_TOPICS, length=80, seed=3)
    learned = model.trust_logit.sigmoid().item()
    assert 0.6 < learned < 0.85
    assert abs(completion_effect(corpus, learned)) < 2
    assert completion_effect(corpus, 0.9999) > 2.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # in the package lda
def test_bursts_of_the_reuters_texts_are_found():
    datasets = pytest.importorskip("lda.datasets", reason="Reuters texts: pip install lda")
    x = torch.as_tensor(datasets.load_reuters()).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    model, new = fitted_to(x[:316], 10), Batch(x[316:])
    draws = predictive_draws(model, new, 99, seed=1)
    result = pop_pc(draws, new.x, discrepancies.word_document_mutual_information(), seed=2)
    assert result.p_value.item() == 0
    assert result.z.item() > 5


def test_simulated_documents_have_the_stated_moments():
    corpus = simulate.topics(4000, n_features=20, n_topics=3, length=50, seed=1)
    assert corpus.x.sum(1).mean().item() == pytest.approx(50, abs=4 * math.sqrt(50 / 4000))
    assert corpus.x.sum(1).var().item() == pytest.approx(50, rel=0.1)
    expected = 50 * corpus.proportions @ corpus.topics
    assert (corpus.x - expected).mean(0).abs().max() < 4 * math.sqrt(50 / 4000)
    torch.testing.assert_close(corpus.topics.sum(1), torch.ones(3))


@pytest.mark.parametrize(("burst_concentration", "expected"), [(None, 50.0), (5.0, 2800 / 6)])
def test_bursts_keep_the_mean_and_widen_the_spread(burst_concentration, expected):
    """One topic: Var(x | n) = n p (1 - p) (n + b) / (1 + b), and E[n (n + 5)] = 2800."""
    options = {"n_features": 20, "n_topics": 1, "topic_concentration": 1.0, "length": 50.0}
    corpus = simulate.topics(8000, burst_concentration=burst_concentration, seed=1, **options)
    p = corpus.topics[0]
    residuals = corpus.x - corpus.x.sum(1, keepdim=True) * p
    spread = (p * (1 - p)).sum().item()
    assert residuals.square().mean(0).sum().item() == pytest.approx(expected * spread, rel=0.05)
    error = (expected * p * (1 - p) / 8000).sqrt()
    assert (residuals.mean(0) / error).abs().max() < 4
