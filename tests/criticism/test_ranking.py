import math

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control, kstest, rankdata

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


def test_ranks_by_hand(result):
    """Ranks of the rows 4 1 2 3 and 2 2 2 4, so p = 1/4 1/4 3/4 3/4 and 3/4 3/4 3/4 1/4.

    Products 3/16 3/16 9/16 3/16: none of the three replicates is below the data, two are equal.
    """
    replicates = [[1.0, 0.0], [2.0, 0.0], [3.0, 7.0]]
    found = result([[5.0, 0.0]], replicates, uniform=[0.5, 0.5])
    assert found.aggregate("ranks") == (0 + 0.5 * 2 + 1) / 4
    with_constant = [[*row, 3.0] for row in replicates]
    found = result([[5.0, 0.0, 3.0]], with_constant, uniform=[0.5] * 3)
    assert found.aggregate("ranks") == 0.5
    alike = result([[3.0, 3.0]], torch.full((99, 2), 3.0), uniform=[0.5, 0.5])
    assert alike.aggregate("ranks") == (0.5 * 99 + 1) / 100


def test_ranks_are_those_of_scipy_in_columns_of_any_number(result, monkeypatch):
    """Fisher's sum from mid-ranks of single columns; blocks of one column change nothing."""
    x = torch.poisson(3 * torch.rand(40, 30)).double()
    x[3, 2], x[4, 2], x[5, 1] = math.inf, -math.inf, math.inf
    ranks = np.column_stack([rankdata(column) for column in x.T.numpy()])
    p = np.minimum(1, 2 * np.minimum(ranks - 0.5, 40.5 - ranks) / 40)
    scores = -np.log(p).sum(1)
    for row in (0, 3, 5):
        others = np.delete(scores, row)
        found = result(x[[row]], x[torch.arange(40) != row], uniform=[0.5] * 30)
        expected = ((others > scores[row]).sum() + 1) / 40
        assert found.aggregate("ranks") == pytest.approx(expected, abs=1e-12)
        monkeypatch.setattr("probinterp.criticism.ranking.RANKED", 1)
        assert found.aggregate("ranks") == pytest.approx(expected, abs=1e-12)


def test_ranks_do_not_depend_on_the_scale_of_the_values(result):
    """Any increasing transformation of a column, up to infinity, leaves p as it was."""
    x = torch.randn(100, 8).double()
    p = result(x[:1], x[1:]).aggregate("ranks")
    x[:, 0], x[:, 1] = x[:, 0].exp(), (100 * x[:, 1]).sinh()
    assert result(x[:1], x[1:]).aggregate("ranks") == p
    x[x[:, 2].argmax(), 2], x[x[:, 3].argmin(), 3] = math.inf, -math.inf
    assert result(x[:1], x[1:]).aggregate("ranks") == p


@pytest.mark.parametrize("statistic", ["maximum", "sum", "ranks"])
def test_aggregate_is_uniform_for_dependent_values(result, statistic):
    """2,000 sets of 6 values with correlation .8 and different scales; S = 39."""
    common, scale = torch.randn(2000, 40, 1), torch.tensor([1.0, 2, 3, 4, 5, 100])
    values = scale * (0.8**0.5 * common + 0.2**0.5 * torch.randn(2000, 40, 6))
    p = [
        result(v[:1], v[1:], uniform=torch.rand(6)).aggregate(statistic) - u / 40
        for v, u in zip(values, torch.rand(2000).tolist(), strict=True)
    ]
    assert kstest(p, "uniform").pvalue > 1e-4


def cauchy(x):
    return torch.tan(math.pi * (torch.special.ndtr(x) - 0.5))


COLUMNS = {
    "normal": lambda x: x,
    "cauchy": cauchy,
    "log-normal of different shape": lambda x: (x * torch.linspace(0.1, 5, 6)).exp(),
    "mostly equal": lambda x: x.clamp(min=1.5),
}


@pytest.mark.parametrize("transform", COLUMNS.values(), ids=COLUMNS)
def test_ranks_reject_five_per_cent_of_exchangeable_rows(result, transform):
    """2,000 sets of 6 values with correlation .8, S = 39; standard error .0049."""
    values = 0.8**0.5 * torch.randn(2000, 40, 1) + 0.2**0.5 * torch.randn(2000, 40, 6)
    values = transform(values.double())
    p = torch.tensor([result(v[:1], v[1:], torch.rand(6)).aggregate("ranks") for v in values])
    rate = (p <= 0.05).double().mean().item()
    assert rate <= 0.05 + 3.3 * 0.0049
    if transform is not COLUMNS["mostly equal"]:  # ties keep the level, but do not reach it
        assert rate >= 0.05 - 3.3 * 0.0049


def power(result, make_rows, n_sets=200):
    """Shares rejected at 5 % by ranks and by the maximum, and the error of their difference."""
    sets = [make_rows() for _ in range(n_sets)]
    found = [result(x[:1], x[1:], torch.rand(50)) for x in sets]
    p = torch.tensor([[r.aggregate("ranks"), r.aggregate("maximum")] for r in found])
    rejected = (p <= 0.05).double()
    error = rejected.diff(dim=1).std().item() / math.sqrt(n_sets)
    return *rejected.mean(0).tolist(), error


def test_ranks_see_a_diffuse_misfit_and_the_maximum_a_single_one(result):
    """50 values, S = 99, 200 sets: standard errors of a rate are at most .035.

    Shares rejected by ranks and maximum over 300 other sets: all values of t_3 shifted by 1: .70
    and .06; all spread by half: .98 and .71; one normal value shifted by 6 sd: .09 and 1.00.
    """
    heavy = torch.distributions.StudentT(3.0)

    def shifted():
        x = heavy.sample((100, 50)).double()
        x[0] += 1
        return x

    def spread():
        x = torch.randn(100, 50).double()
        x[0] *= 1.5
        return x

    def single():
        x = torch.randn(100, 50).double()
        x[0, 0] += 6
        return x

    for make_rows, expected in ((shifted, 0.70), (spread, 0.98)):
        ranks, maximum, error = power(result, make_rows)
        assert ranks == pytest.approx(expected, abs=0.15)
        assert ranks - maximum > 0.1 + 3 * error
    ranks, maximum, error = power(result, single)
    assert maximum > 0.95
    assert ranks < 0.2
    assert maximum - ranks > 0.5 + 3 * error


def test_aggregate_refuses_what_it_cannot_rank(result):
    with pytest.raises(ValueError, match="an aggregate test needs several values"):
        result([1.0], torch.arange(9.0)).aggregate()
    realised = result(torch.randn(9, 2), torch.randn(9, 2), kind="realised")
    with pytest.raises(ValueError, match="a realised check has one for each"):
        realised.aggregate()
    with pytest.raises(
        ValueError, match="statistic must be one of maximum, sum, ranks, got 'mean'"
    ):
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
