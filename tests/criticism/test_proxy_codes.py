"""Numbers of active codes: Poisson-binomial replicates, aggregate rates."""

import itertools
import math

import pytest
import torch
from scipy.stats import ttest_1samp

from probinterp.criticism import (
    CodeCountDraws,
    TokenLayout,
    check_proxy,
    code_count_suite,
    rate_check,
)

LAYOUT = TokenLayout(
    torch.arange(40).repeat_interleave(5), torch.tensor([0, 1, 1, 1, 1]).repeat(40), 2
)


@pytest.fixture
def inclusion():
    torch.manual_seed(0)
    return torch.rand(200, 2, 12).square()


def test_counts_follow_the_poisson_binomial_law():
    """20,000 draws of three codes; standard error of a probability at most .0036."""
    pi = [0.1, 0.5, 0.8]
    draws = CodeCountDraws(torch.tensor(pi).expand(200, 2, 3), n_draws=50, seed=1)
    counts = torch.cat([draw.replicate().flatten() for draw in draws])
    for k in range(4):
        expected = sum(
            math.prod(p if on else 1 - p for p, on in zip(pi, code, strict=True))
            for code in itertools.product([0, 1], repeat=3)
            if sum(code) == k
        )
        assert (counts == k).double().mean().item() == pytest.approx(expected, abs=0.015)
    law = draws.reference.likelihood(counts)
    assert law.mean[0, 0].item() == pytest.approx(1.4)
    assert law.variance[0, 0].item() == pytest.approx(0.09 + 0.25 + 0.16)


def test_large_inclusion_is_drawn_in_parts(inclusion, monkeypatch):
    whole = next(iter(CodeCountDraws(inclusion))).replicate()
    monkeypatch.setattr("probinterp.criticism.code_counts.CHUNK_ENTRIES", 24 * 7)
    assert torch.equal(next(iter(CodeCountDraws(inclusion))).replicate(), whole)


def test_codes_drawn_from_their_probabilities_pass_and_others_do_not(inclusion):
    """Hard counts, and gates that fire together, differ from the Poisson-binomial law."""
    codes = torch.bernoulli(inclusion)
    together = (torch.rand(200, 2, 1) < inclusion).float()  # one uniform number for all codes
    flagged = {}
    for name, active in {
        "true": codes,
        "hard": (inclusion > 0.5).float(),
        "together": together,
    }.items():
        counts = active.sum(-1, keepdim=True)
        draws = CodeCountDraws(inclusion, 199, seed=3)
        found = check_proxy(draws, counts, LAYOUT, make_suite=code_count_suite)
        assert found.calibrated
        flagged[name] = found.flagged(0.05 / 4)
    assert flagged["true"] == {}
    assert {"layer 0, patch", "layer 1, patch"} <= set(flagged["hard"]["mean_value"])
    assert set(flagged["together"]["chi_square"]) == set(LAYOUT.cells)


def test_mean_value_is_the_mean_of_the_cell(inclusion):
    found = code_count_suite(LAYOUT)["mean_value"]
    x = inclusion.sum(-1, keepdim=True)
    draws = CodeCountDraws(inclusion)
    value = found(x, draws.reference)
    expected = [
        x[LAYOUT.token_type == kind, layer].mean().item() for kind in (0, 1) for layer in (0, 1)
    ]
    assert value.tolist() == pytest.approx(expected, rel=1e-5)


def test_rates_are_a_t_test_over_images(inclusion):
    prior = torch.full((2, 12), 0.3)
    found = rate_check(inclusion, prior, LAYOUT)
    by_image = inclusion.reshape(40, 5, 2, 12).double().mean(1)
    for layer, code in ((0, 0), (1, 7)):
        expected = ttest_1samp(by_image[:, layer, code].numpy(), prior[layer, code].item())
        assert found.z[layer, code].item() == pytest.approx(expected.statistic, rel=1e-9)
        assert found.p[layer, code].item() == pytest.approx(expected.pvalue, rel=1e-9)
    exact = rate_check(torch.full((200, 2, 3), 0.25), torch.tensor(0.25), LAYOUT)
    assert exact.z.abs().amax() == 0
    assert exact.summary() == {
        "posterior_l0": [0.75, 0.75],
        "prior_l0": [0.75, 0.75],
        "share_off": [0, 0],
    }


def test_rates_that_differ_are_found(inclusion):
    prior = inclusion.mean(0)
    prior[0, 0] += 0.2
    found = rate_check(inclusion, prior, LAYOUT)
    assert (found.p_adjusted <= 0.05).nonzero().tolist() == [[0, 0]]
    assert found.summary()["share_off"] == [1 / 12, 0]


def test_refusals(inclusion):
    with pytest.raises(ValueError, match=r"probabilities of shape \(N, L, H\)"):
        CodeCountDraws(inclusion + 1)
    with pytest.raises(ValueError, match="n_draws must be a positive integer, got 0"):
        CodeCountDraws(inclusion, 0)
    alone = TokenLayout(torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 1, 1, 1]), 2)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        rate_check(inclusion[:5], torch.tensor(0.1), alone)
