import math

import numpy as np
import pytest
import torch

from probinterp.criticism.discrepancies import (
    instantaneous_mutual_information,
    word_document_mutual_information,
)


def information_by_hand(joint):
    joint = joint / joint.sum()
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    positive = joint > 0
    return (joint[positive] * np.log(joint[positive] / product[positive])).sum()


@pytest.fixture
def counts():
    rate = torch.rand(9, 6, dtype=torch.float64) * 3
    x = torch.poisson(rate)
    x[:, 2] = 0  # a word that does not occur
    return x


def test_information_is_that_of_the_joint_distribution_in_each_topic(counts):
    shares = torch.rand(6, 3, dtype=torch.float64)
    value = word_document_mutual_information(shares)(counts, None)
    normalised = (shares / shares.sum(1, keepdim=True)).numpy()
    expected = [information_by_hand(counts.numpy() * normalised[:, k]) for k in range(3)]
    assert value.tolist() == pytest.approx(expected, rel=1e-12)


def test_assignments_are_responsibilities_of_zero_and_one(counts):
    topics = [0, 2, 1, 2, 0, 2]
    one_hot = np.eye(3)[topics]
    for make in (word_document_mutual_information, instantaneous_mutual_information):
        hard, soft = make(topics)(counts, None), make(one_hot)(counts, None)
        assert torch.equal(hard, soft)


def test_topics_without_occurrences_have_no_information(counts):
    value = word_document_mutual_information([0, 0, 1, 0, 0, 0])(counts, None)
    assert value[1].item() == 0
    assert value[0].item() == pytest.approx(information_by_hand(counts.numpy()))


def test_information_of_words_averages_to_that_of_their_topic(counts):
    topics = torch.tensor([0, 1, 1, 1, 0, 0])
    words = instantaneous_mutual_information(topics)(counts, None)
    whole = word_document_mutual_information(topics)(counts, None)
    frequency = counts.sum(0)
    for k in range(2):
        chosen = topics == k
        average = (frequency * words)[chosen].sum() / frequency[chosen].sum()
        assert average.item() == pytest.approx(whole[k].item(), rel=1e-12)
    assert words[2].item() == 0


def test_independence_of_word_and_document_is_zero():
    x = torch.outer(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([3.0, 1.0, 4.0, 2.0])).double()
    assert word_document_mutual_information()(x, None).item() == pytest.approx(0, abs=1e-15)
    assert instantaneous_mutual_information()(x, None).tolist() == pytest.approx([0] * 4, abs=1e-15)


def test_bursty_words_carry_more_information_than_a_multinomial():
    p = torch.full((200, 50), 1 / 50)
    plain = torch.distributions.Multinomial(1000, p).sample()
    rates = torch.distributions.Dirichlet(torch.full((200, 50), 0.5)).sample()
    bursty = torch.distributions.Multinomial(1000, rates).sample()
    information = word_document_mutual_information()
    # 49 * 199 degrees of freedom over twice the 200,000 tokens: bias of independent counts
    assert information(plain, None).item() == pytest.approx(49 * 199 / 400000, rel=0.1)
    assert information(bursty, None).item() > 0.5


def test_single_precision_loses_little():
    x = torch.poisson(torch.rand(300, 400, dtype=torch.float64) * 20)
    topics = torch.arange(400) % 5
    exact = word_document_mutual_information(topics)(x, None)
    value = word_document_mutual_information(topics)(x.float(), None)
    assert value.tolist() == pytest.approx(exact.tolist(), abs=2e-6)


def test_names_axes_and_labels():
    topics = word_document_mutual_information([0, 1, 0])
    assert (topics.axis, topics.labels) == ("group", ("topic 0", "topic 1"))
    assert word_document_mutual_information([0, 1], labels=["sport", "law"]).labels == (
        "sport",
        "law",
    )
    words = instantaneous_mutual_information(labels=["ball", "court"])
    assert (words.axis, words.labels) == ("feature", ("ball", "court"))
    assert not hasattr(word_document_mutual_information(), "axis")


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ([[[1.0]]], r"got shape \(1, 1, 1\)"),
        ([], r"got shape \(0,\)"),
        ([0.5, 1.0], r"topics of shape \(V,\) must be integers, got torch.float32"),
        ([0, -1], "topics must not be negative, got -1"),
        ([[1.0, 0.0], [0.0, 0.0]], "responsibilities of word 1 are all 0"),
        ([[1.0, math.nan]], "topics must be finite"),
    ],
)
def test_topics_that_make_no_sense_are_refused(topics, message):
    for make in (word_document_mutual_information, instantaneous_mutual_information):
        with pytest.raises(ValueError, match=message):
            make(topics)


def test_data_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="topics has 2 words, the data have 3"):
        word_document_mutual_information([0, 1])(torch.ones(4, 3), None)
    with pytest.raises(ValueError, match="labels must name the 2 topics, got 1 names"):
        word_document_mutual_information([0, 1], labels=["sport"])
