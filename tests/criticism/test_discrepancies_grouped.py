import numpy as np
import pytest
import torch

from probinterp.criticism import discrepancies
from probinterp.criticism.discrepancies import (
    grand_mean,
    maximum_of_group_means,
    mean_of_group_quantiles,
    per_group,
    quantile_of_group_means,
)


@pytest.mark.parametrize("n_features", [1, 3])
def test_group_statistics_equal_numpy(n_features):
    groups = np.random.default_rng(0).integers(0, 7, size=50)
    x = torch.randn(50, n_features, dtype=torch.float64)
    parts = [x.numpy()[groups == m] for m in np.unique(groups)]
    means = [part.mean() for part in parts]
    for statistic, expected in {
        grand_mean(groups): np.mean(means),
        maximum_of_group_means(groups): np.max(means),
        quantile_of_group_means(groups, 0.6): np.quantile(means, 0.6),
        mean_of_group_quantiles(groups, 0.6): np.mean([np.quantile(p, 0.6) for p in parts]),
    }.items():
        assert statistic(x, None).item() == pytest.approx(expected, rel=1e-12), statistic.__name__


def test_groups_of_equal_size_leave_the_mean_alone():
    x = torch.randn(12, 2, dtype=torch.float64)
    value = grand_mean([0, 1, 2] * 4)(x, None).item()
    assert value == pytest.approx(x.mean().item(), abs=1e-15)


def test_order_of_units_and_kind_of_labels_do_not_matter():
    groups, x = torch.tensor([3, 3, 8, 5, 8]), torch.randn(5, 2, dtype=torch.float64)
    expected = per_group(discrepancies.mean, groups)(x, None)
    order = torch.randperm(5)
    moved = per_group(discrepancies.mean, groups[order])(x[order], None)
    assert torch.allclose(moved, expected)
    for labels in (groups.tolist(), groups.numpy(), groups.numpy().astype(str)):
        assert torch.equal(per_group(discrepancies.mean, labels)(x, None), expected)


def test_names_carry_the_quantile():
    assert quantile_of_group_means([0, 1]).__name__ == "quantile_of_group_means(0.75)"
    assert mean_of_group_quantiles([0, 1], 0.9).__name__ == "mean_of_group_quantiles(0.9)"


@pytest.mark.parametrize("make", [quantile_of_group_means, mean_of_group_quantiles])
def test_quantiles_outside_the_unit_interval_are_refused(make):
    with pytest.raises(ValueError, match=r"q must be a probability in \[0, 1\], got 75"):
        make([0, 1], 75)


@pytest.mark.parametrize(
    "make",
    [
        grand_mean,
        maximum_of_group_means,
        quantile_of_group_means,
        mean_of_group_quantiles,
        lambda groups: per_group(discrepancies.mean, groups),
        lambda groups: discrepancies.group_gap(discrepancies.mean, groups),
    ],
)
def test_groups_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match="labels of 3 units, the data have 5"):
        make(["a", "b", "a"])(torch.rand(5, 2), None)
    with pytest.raises(ValueError, match=r"one label per unit, shape \(N,\), got shape \(2, 1\)"):
        make([[1], [2]])
    with pytest.raises(ValueError, match=r"one label per unit, shape \(N,\), got shape \(0,\)"):
        make([])


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels must name the 2 groups, got 1 names"):
        per_group(discrepancies.mean, [0, 1, 1], labels=["one"])


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_units_without_a_group_are_refused(missing):
    """They would silently make up a group of their own, called nan."""
    with pytest.raises(ValueError, match=r"groups is missing \(None or NaN\) for 1 of 3 units"):
        grand_mean([1.0, 2.0, missing])
