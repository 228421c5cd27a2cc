import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.metrics import roc_auc_score

from probinterp.genomics import marker_groups

GROUPS = np.array(["B", "T", "NK", "T", "B", "NK", "T", "T", "B", "T", "NK", "B"])


def scores(seed=0, n=12):
    return np.random.default_rng(seed).integers(0, 6, (n, 3)).astype(float)  # with ties


def test_numbers_agree_with_scikit_learn_and_scipy():
    values = scores()
    table = marker_groups(values, GROUPS)
    assert len(table) == 9
    for row in table.itertuples():
        column = values[:, int(row.factor.removeprefix("factor_")) - 1]
        inside = row.group == GROUPS
        group, others = column[inside], column[~inside]
        assert row.n_cells == inside.sum()
        assert row.auc == pytest.approx(roc_auc_score(inside, column), abs=1e-12)
        expected = mannwhitneyu(group, others, method="asymptotic").pvalue
        assert row.p_value == pytest.approx(expected, rel=1e-12)
        within = np.concatenate([group - group.mean(), others - others.mean()])
        pooled = np.sqrt((within**2).sum() / 10)
        assert row.effect_size == pytest.approx((group.mean() - others.mean()) / pooled)
        assert row.sign == (1 if row.auc >= 0.5 else -1)
        assert row.separation == pytest.approx(max(row.auc, 1 - row.auc))
    assert np.array_equal(table["q_value"], false_discovery_control(table["p_value"].to_numpy()))
    assert (table.groupby("factor")["best"].sum() == 1).all()
    best = table[table["best"]].set_index("factor")["separation"]
    assert np.array_equal(best, table.groupby("factor")["separation"].max())


def test_a_factor_marks_its_group_with_either_sign():
    inside = (GROUPS == "NK").astype(float)
    noise = np.linspace(0, 0.1, 12)
    values = torch.tensor(np.column_stack([inside + noise, -inside + noise]))
    best = marker_groups(values, GROUPS).query("best")
    assert list(best["group"]) == ["NK", "NK"]
    assert list(best["auc"]) == [1.0, 0.0]
    assert list(best["sign"]) == [1, -1]
    assert list(best["separation"]) == [1.0, 1.0]


def test_a_constant_factor_marks_nothing():
    table = marker_groups(np.ones((12, 1)), GROUPS)
    assert (table["auc"] == 0.5).all()
    assert (table["p_value"] == 1).all()
    assert (table["q_value"] == 1).all()
    assert (table["effect_size"] == 0).all()


def test_p_values_are_uniform_where_groups_mean_nothing():
    rng = np.random.default_rng(1)
    table = marker_groups(rng.normal(size=(200, 1000)), np.resize(["a", "b", "c"], 200))
    first = table[table["group"] == "a"]["p_value"]
    assert (first < 0.05).mean() == pytest.approx(0.05, abs=0.02)  # 3 standard errors
    assert (table["q_value"] < 0.05).mean() < 0.003


def test_names_come_from_a_table_and_unused_categories_are_no_group():
    table = pd.DataFrame(scores()[:, :2], columns=["alpha", "beta"])
    groups = pd.Categorical(GROUPS, categories=["T", "none", "B", "NK"])
    result = marker_groups(table, groups)
    assert list(result["factor"].unique()) == ["alpha", "beta"]
    assert list(result["group"].unique()) == ["T", "B", "NK"]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_cells_does_not_matter(order):
    plain = marker_groups(scores(), GROUPS)
    permuted = marker_groups(scores()[order], GROUPS[order])
    pd.testing.assert_frame_equal(plain, permuted, rtol=1e-10)


BAD = {
    "shape": (np.ones(12), GROUPS, r"scores must have shape \(N, K\), got \(12,\)"),
    "length": (scores(), GROUPS[:5], r"expected one group for each of 12 cells, got 5"),
    "no factor": (np.ones((12, 0)), GROUPS, r"expected at least one factor"),
    "NaN": (scores() * np.nan, GROUPS, r"scores must be finite, but 12 cells"),
    "one group": (scores(), ["a"] * 12, r"expected at least 2 groups, got \['a'\]"),
    "missing": (scores(), [None, *GROUPS[1:]], r"groups is missing \(NaN\) for 1 cells"),
}


@pytest.mark.parametrize(("values", "groups", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_compared_is_refused(values, groups, message):
    with pytest.raises(ValueError, match=message):
        marker_groups(values, groups)
