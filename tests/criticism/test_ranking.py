import math

import pytest
import torch
from scipy.stats import false_discovery_control, kstest

from probinterp.criticism import adjust


def test_holm_and_benjamini_hochberg_computed_by_hand():
    p = torch.tensor([0.04, 0.01, 0.03, 0.5])
    assert adjust(p, "holm").tolist() == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert adjust(p, "bh").tolist() == pytest.approx([0.16 / 3, 0.04, 0.16 / 3, 0.5])
    assert adjust(torch.tensor(0.3), "holm") == pytest.approx(0.3)
    many = torch.rand(1000).double()
    assert adjust(many).numpy() == pytest.approx(false_discovery_control(many.numpy()))


def test_holm_keeps_the_family_wise_error():
    """5,000 families of 20 uniform p-values: any rejection with probability at most .05."""
    p = torch.rand(5000, 20).double()
    any_rejected = torch.stack([(adjust(row, "holm") <= 0.05).any() for row in p]).double().mean()
    assert any_rejected.item() == pytest.approx(1 - 0.9975**20, abs=4 * math.sqrt(0.05 / 5000))


@pytest.mark.parametrize(
    ("p", "method", "text"),
    [
        (torch.tensor([0.1]), "bonferroni", "method must be one of bh, holm, got 'bonferroni'"),
        (torch.tensor([[0.1]]), "bh", r"p must be a vector or a number, got shape \(1, 1\)"),
        (torch.tensor([1.1]), "bh", r"p-values must lie in \[0, 1\]"),
        (torch.tensor([math.nan]), "holm", r"p-values must lie in \[0, 1\]"),
    ],
)
def test_bad_p_values_are_refused(p, method, text):
    with pytest.raises(ValueError, match=text):
        adjust(p, method)


def test_ranking_is_sorted_and_keeps_its_columns_together(result):
    replicates = torch.randn(500, 3).double()
    found = result([[0.1, -5.0, 3.0]], replicates, n_features=3)
    ranking = found.ranking(["a", "b", "c"])
    assert ranking.labels == ("b", "c", "a")
    assert ranking.heldout.tolist() == [-5.0, 3.0, 0.1]
    assert torch.equal(ranking.z, found.z[[1, 2, 0]])
    assert torch.equal(ranking.p_adjusted, found.p_adjusted[[1, 2, 0]])
    assert ranking.rejected.tolist() == [True, True, False]
    assert (ranking.n_rejected, len(ranking)) == (2, 3)
    quantiles = torch.quantile(replicates[:, 1], torch.tensor([0.05, 0.95]).double())
    assert ranking.low[0].item() == pytest.approx(quantiles[0].item())
    assert ranking.high[0].item() == pytest.approx(quantiles[1].item())
    first = ranking.rows(1)
    assert len(first) == 1
    assert (first[0]["feature"], first[0]["heldout"], first[0]["rejected"]) == ("b", -5.0, True)


def test_rankings_need_several_values_and_fitting_labels(result):
    with pytest.raises(ValueError, match="a ranking needs several values, but d is one number"):
        result([1.0], torch.arange(9.0)).ranking()
    with pytest.raises(ValueError, match="labels must name 2 values, got 3"):
        result([[1.0, 2.0]], torch.randn(9, 2)).ranking(["a", "b", "c"])


def test_aggregate_by_hand(result):
    """Rows 0 (data), and -1, 0, 1 twice over: the largest |z| of the data is the smallest."""
    rows = torch.tensor([-1.0, 0.5, 1.0, -0.5]).unsqueeze(1).expand(4, 2)
    found = result([[0.0, 0.0]], rows, uniform=[0.5, 0.5])
    assert found.aggregate() == 1.0
    assert result([[9.0, 0.0]], rows, uniform=[0.5, 0.5]).aggregate() == 1 / 5
    assert result([[9.0, 0.0]], rows, uniform=[0.5, 0.5]).aggregate("sum") == 1 / 5


@pytest.mark.parametrize("statistic", ["maximum", "sum"])
def test_aggregate_is_uniform_for_dependent_values(result, statistic):
    """2,000 sets of 6 values with correlation .8 and different scales; S = 39."""
    common, scale = torch.randn(2000, 40, 1), torch.tensor([1.0, 2, 3, 4, 5, 100])
    values = scale * (0.8**0.5 * common + 0.2**0.5 * torch.randn(2000, 40, 6))
    p = [
        result(v[:1], v[1:], uniform=torch.rand(6)).aggregate(statistic) - u / 40
        for v, u in zip(values, torch.rand(2000).tolist(), strict=True)
    ]
    assert kstest(p, "uniform").pvalue > 1e-4


def test_aggregate_refuses_what_it_cannot_rank(result):
    with pytest.raises(ValueError, match="an aggregate test needs several values"):
        result([1.0], torch.arange(9.0)).aggregate()
    realised = result(torch.randn(9, 2), torch.randn(9, 2), kind="realised")
    with pytest.raises(ValueError, match="a realised check has one for each"):
        realised.aggregate()
    with pytest.raises(ValueError, match="statistic must be one of maximum, sum, got 'mean'"):
        result([[1.0, 2.0]], torch.randn(9, 2)).aggregate("mean")


def test_values_without_an_effect_size_come_last(result):
    replicates = torch.randn(99, 3).double()
    replicates[:3, 0] = math.inf
    ranking = result([[math.inf, 1.0, 9.0]], replicates, n_features=3).ranking(["a", "b", "c"])
    assert ranking.labels == ("c", "b", "a")
    assert ranking.z[2].isnan()


def test_infinite_values_exceed_all_others_in_the_aggregate(result):
    """Standardised they would be NaN, which no replicate exceeds: the smallest p-value."""
    replicates = torch.randn(99, 3).double()
    replicates[:4, 1] = math.inf
    for statistic in ("maximum", "sum"):
        inside = result([[0.0, 0.0, 0.0]], replicates)
        assert inside.aggregate(statistic) > 0.9
        among = result([[0.0, math.inf, 0.0]], replicates, uniform=[0.5] * 3)
        assert among.aggregate(statistic) == pytest.approx((0.5 * 4 + 1) / 100)
