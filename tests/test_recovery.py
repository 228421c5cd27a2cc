"""Measures of recovery against numbers computed by hand."""

import itertools
import math

import pytest
import torch

from probinterp.recovery import (
    SupportScores,
    block_accuracy,
    double_coded,
    matched_correlation,
    relative_frobenius,
    rv_coefficient,
    support_scores,
    support_scores_by_block,
)


def columns(*supports, n=8):
    found = torch.zeros(n, len(supports), dtype=torch.bool)
    for k, support in enumerate(supports):
        found[list(support), k] = True
    return found


def test_scores_of_supports_by_hand():
    true = columns({0, 1, 2, 3}, {4, 5})
    found = columns({0, 1}, {2, 3, 4}, {4, 5, 6})
    # J = [[2/4, 0], [2/5, 1/4], [0, 2/3]]; best matching: first with first, third with second
    scores = support_scores(found, true)
    assert scores.consensus == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert scores.relevance == pytest.approx((1 / 2 + 2 / 5 + 2 / 3) / 3)
    assert scores.recovery == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_matching_is_best_over_all_permutations():
    generator = torch.Generator().manual_seed(3)
    found, true = (torch.rand(12, 4, generator=generator) < 0.4 for _ in "ab")

    def jaccard(k, m):
        a, b = found[:, k], true[:, m]
        return (a & b).sum().item() / max(1, (a | b).sum().item())

    best = max(
        sum(jaccard(k, m) for k, m in enumerate(order))
        for order in itertools.permutations(range(4))
    )
    assert support_scores(found, true).consensus == pytest.approx(best / 4)


def test_perfect_recovery_in_any_order_is_one_and_empty_columns_do_not_count():
    true = columns({0, 1}, {2, 3}, {4})
    found = columns({4}, set(), {2, 3}, {0, 1})
    assert support_scores(found, true) == SupportScores(1.0, 1.0, 1.0)


def test_nothing_found_is_zero_and_nothing_to_find_has_no_recovery():
    true = columns({0, 1}, {2})
    assert support_scores(columns(set()), true) == SupportScores(0.0, 0.0, 0.0)
    assert support_scores(true[:, :0], true) == SupportScores(0.0, 0.0, 0.0)
    false = support_scores(true, columns(set()))
    assert false[:2] == (0.0, 0.0)
    assert math.isnan(false.recovery)
    assert all(math.isnan(v) for v in support_scores(true[:, :0], true[:, :0]))


def test_a_factor_in_the_wrong_block_is_not_found():
    true, true_block = columns({0, 1}, {2, 3}, {4, 5}), torch.tensor([-1, 0, 1])
    found, block = columns({0, 1}, {4, 5}, {2, 3}), torch.tensor([-1, 0, 1])
    assert support_scores(found, true).consensus == 1.0
    scores = support_scores(found, true, found_block=block, true_block=true_block)
    assert scores == SupportScores(*([pytest.approx(1 / 3)] * 3))
    by_block = support_scores_by_block(found, true, block, true_block)
    assert [by_block[b].consensus for b in (-1, 0, 1)] == [1.0, 0.0, 0.0]


def test_unlike_supports_and_one_sided_blocks_are_refused():
    with pytest.raises(ValueError, match="same features, got 8 and 9"):
        support_scores(columns({0}), columns({0}, n=9))
    with pytest.raises(ValueError, match="for both supports or for neither"):
        support_scores(columns({0}), columns({0}), found_block=torch.tensor([0]))


def factors():
    """Two studies of four: orthogonal contrasts, so that every correlation is known."""
    a = torch.tensor([1.0, 1, -1, -1])
    b = torch.tensor([1.0, -1, 1, -1])
    c = torch.tensor([1.0, -1, -1, 1])
    zero = torch.zeros(4)
    study = torch.tensor([0] * 4 + [1] * 4)
    truth = torch.stack([torch.cat([a, a]), torch.cat([b, zero]), torch.cat([zero, b])], 1)
    return a, b, c, zero, study, truth, torch.tensor([-1, 0, 1])


def test_correlations_by_block_by_hand():
    a, b, c, zero, study, truth, truth_block = factors()
    z = torch.stack(
        [
            torch.cat([-a, -a]),  # the shared factor, sign reversed
            torch.cat([0.75 * b, 0.75 * b]) + torch.cat([c, c]),  # r = .6 with b in either study
            torch.cat([4 * b + 3 * c, zero]),  # r = .8 with the factor of study 0
            torch.cat([zero, 3 * a + 4 * c]),  # r = 0 with its own factor, .6 with the shared one
        ],
        1,
    )
    found = matched_correlation(z, truth, torch.tensor([-1, -1, 0, 1]), truth_block, study)
    assert found.matched.tolist() == pytest.approx([1.0, 0.8, 0.0])
    assert found.shared.tolist() == pytest.approx([1.0, 0.6, 0.6])
    assert found.specific.tolist() == pytest.approx([0.6, 0.8, 0.0])
    assert block_accuracy(found, threshold=0.75) == 0.5
    assert block_accuracy(found) == 0.0
    assert double_coded(found, threshold=0.59).tolist() == [True, True, False]
    assert double_coded(found, threshold=0.61).tolist() == [False, False, False]


def test_a_code_is_matched_once_and_constant_codes_count_for_nothing():
    a, b, _, _, study, _, _ = factors()
    truth = torch.stack([torch.cat([a, a]), torch.cat([a + b, a + b])], 1)
    z = torch.stack([torch.cat([a, a]), torch.ones(8)], 1)
    block = torch.tensor([-1, -1])
    found = matched_correlation(z, truth, block, block, study)
    assert found.matched.tolist() == pytest.approx([1.0, 0.0])
    assert found.shared.tolist() == pytest.approx([1.0, 0.5**0.5])
    assert math.isnan(block_accuracy(found))


def test_correlations_need_the_same_observations_and_blocks():
    *_, study, truth, block = factors()
    with pytest.raises(ValueError, match="got 7, 8 and 8"):
        matched_correlation(truth[:7], truth, block, block, study)
    with pytest.raises(ValueError, match="got 2 for 3 codes"):
        matched_correlation(truth, truth, block[:2], block, study)


def test_covariance_measures_by_hand():
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert rv_coefficient(a, b) == pytest.approx(8 / math.sqrt(15 * 5))
    assert rv_coefficient(a, 7 * a) == pytest.approx(1.0)
    assert relative_frobenius(a, b) == pytest.approx(2 / math.sqrt(5))
    assert relative_frobenius(b, b) == 0.0
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3, 3\)"):
        rv_coefficient(a, torch.eye(3))
