import numpy as np
import pytest
import torch
from scipy.stats import ks_1samp, uniform

from probinterp.criticism.image_uniformity import (
    ad_p_value,
    ad_statistic,
    image_checks,
    ks_p_value,
    ks_statistic,
)


def test_kolmogorov_smirnov_is_scipys():
    p = torch.rand(23, 4, dtype=torch.float64).square()
    found = ks_statistic(p)
    for c in range(4):
        expected = ks_1samp(p[:, c].numpy(), uniform.cdf)
        assert found[c].item() == pytest.approx(expected.statistic, rel=1e-12)
        assert ks_p_value(found, 23)[c].item() == pytest.approx(expected.pvalue, rel=1e-9)


def test_anderson_darling_equals_its_sum():
    p = np.sort(np.random.default_rng(0).random(17))
    terms = [(2 * i - 1) * (np.log(p[i - 1]) + np.log(1 - p[17 - i])) for i in range(1, 18)]
    found = ad_statistic(torch.from_numpy(p).unsqueeze(1)[torch.randperm(17)])
    assert found.item() == pytest.approx(-17 - sum(terms) / 17, rel=1e-12)


@pytest.mark.parametrize(
    ("statistic", "p"), [(1.933, 0.10), (2.492, 0.05), (3.070, 0.025), (3.857, 0.01)]
)
def test_anderson_darling_p_at_tabulated_points(statistic, p):
    """Percentage points of Case 0, Stephens (1974), table 1.2."""
    assert ad_p_value(torch.tensor(statistic)).item() == pytest.approx(p, rel=0.03)


def test_anderson_darling_p_over_its_range():
    """Against 10^5 samples of 10 uniform numbers; decreasing and without noise in the far tail."""
    sample = torch.from_numpy(np.random.default_rng(1).random((10, 100_000)))
    statistic = ad_statistic(sample)
    points = torch.tensor([0.2, 0.4, 0.8, 1.5, 3.0])
    simulated = (statistic >= points.unsqueeze(1)).double().mean(1)
    assert torch.allclose(ad_p_value(points), simulated, atol=0.005)
    far = ad_p_value(torch.linspace(0.02, 40, 400, dtype=torch.float64))
    assert (far.diff() <= 1e-12).all()
    assert far[0] == pytest.approx(1, abs=1e-6)
    assert 0 <= far[-1] < 1e-9


def test_p_values_of_images_are_counts():
    heldout = torch.tensor([[1.0, 5.0], [2.0, 0.0]])
    replicated = torch.tensor([[[1.0, 4.0], [3.0, 1.0]], [[0.0, 6.0], [1.0, 2.0]]])
    u = torch.tensor([[0.5, 0.25], [0.5, 0.75]])
    found = image_checks("d", ("a", "b"), heldout, replicated, u)
    assert found.p_value.tolist() == [[0.5, 0.5], [0.5, 1.0]]
    expected = [[(0 + 0.5 * 2) / 3, (1 + 0.25) / 3], [(1 + 0.5) / 3, (2 + 0.75) / 3]]
    assert torch.allclose(found.p_rank, torch.tensor(expected, dtype=torch.float64))
    assert found.ks[0].item() == pytest.approx(ks_1samp([1 / 3, 1 / 2], uniform.cdf).statistic)


def test_replicated_p_is_the_rank_of_the_statistic_when_each_replicate_is_the_data_in_turn():
    torch.manual_seed(0)
    rows = torch.randn(8, 12, 2, dtype=torch.float64)
    rows[0] += 0.7
    u = torch.rand(12, 2, dtype=torch.float64)
    found = image_checks("d", ("a", "b"), rows[0], rows[1:], u)
    by_hand = []
    for s in range(8):
        others = torch.cat([rows[:s], rows[s + 1 :]])
        p = ((others > rows[s]).sum(0) + u) / 8
        by_hand.append(torch.stack([ks_statistic(p), ad_statistic(p)]))
    values = torch.stack(by_hand)
    expected = (values >= values[0] - 1e-12).double().mean(0)
    assert torch.equal(found.ks_p_replicated, expected[0])
    assert torch.equal(found.ad_p_replicated, expected[1])


def test_what_images_share_makes_only_the_nominal_test_reject():
    """A common shift in data and replicates: 100 data sets of 40 images, level 5 %."""
    torch.manual_seed(2)
    nominal = ranked = 0
    for _ in range(100):
        rows = torch.randn(40, 40, 1) + 0.5 * torch.randn(40, 1, 1)
        found = image_checks("d", ("a",), rows[0], rows[1:], torch.rand(40, 1))
        nominal += found.ks_p.item() <= 0.05
        ranked += found.ks_p_replicated.item() <= 0.05
    assert nominal > 30
    assert ranked <= 14  # 99.99 % of a binomial law with mean 5
