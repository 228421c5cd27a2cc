import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu, norm

from probinterp.genomics import factor_contrasts, permuted_within, van_elteren

BATCH = np.repeat(["x", "y", "z"], [40, 25, 12])
GROUP = np.concatenate([np.repeat(["a", "b"], n) for n in ((34, 6), (5, 20), (6, 6))])


def zero_heavy(n_sets, seed, batch_shift=1.5):
    """Unbalanced strata, 60 % ties at zero; batches differ in location and scale, groups do not."""
    rng = np.random.default_rng(seed)
    size = len(BATCH)
    values = rng.gamma(1, 1, (size, n_sets)) * (rng.random((size, n_sets)) > 0.6)
    shift = batch_shift * np.array([{"x": 0, "y": 1, "z": 2}[b] for b in BATCH])[:, None]
    return values * (1 + shift) + shift


def test_van_elteren_by_hand():
    values = [1, 2, 3, 4, 5, 0, 0, 7]
    group = np.array([False, False, True, True, True, False, True, True])
    strata = [0, 0, 0, 0, 0, 1, 1, 1]
    # stratum 0: ranks 3 + 4 + 5 = 12 against 9; stratum 1: ranks 1.5, 3 = 4.5 against 4
    statistic = 3 / 6 + 0.5 / 4
    variance = 3 * 2 / (36 * 5 * 4) * 10 + 2 * 1 / (16 * 3 * 2) * 1.5
    result = van_elteren(values, group, strata)
    assert result.z[0] == pytest.approx(statistic / variance**0.5)
    assert result.p_value[0] == pytest.approx(2 * norm.sf(statistic / variance**0.5))
    # pairs won: 6 of 6, then 1.5 of 2; weights of a pair 1/6 and 1/4
    assert result.superiority[0] == pytest.approx((6 / 6 + 1.5 / 4) / (6 / 6 + 2 / 4))
    # mean differences 2.5 and 3.5 with weights 6/5 and 2/3; sum of squares .5 + 2 + 24.5, 4 d.f.
    mean = (1.2 * 2.5 + 2 / 3 * 3.5) / (1.2 + 2 / 3)
    assert result.shift[0] == pytest.approx(mean / (27 / 4) ** 0.5)


def test_one_stratum_is_the_test_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    values = np.round(rng.gamma(1, 1, (30, 5)), 1)
    group = np.arange(30) < 12
    ours = van_elteren(values, group)
    theirs = mannwhitneyu(values[group], values[~group], method="asymptotic", use_continuity=False)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-10)
    assert ours.superiority == pytest.approx(theirs.statistic / (12 * 18), rel=1e-10)


def test_permutations_approach_the_exact_p_value():
    values, group = np.array([1.0, 5, 2, 4, 3, 7, 8, 9]), np.array([1, 0, 1, 0, 0, 1, 0, 0], bool)
    exact = mannwhitneyu(values[group], values[~group], method="exact").pvalue
    ours = van_elteren(values, group, n_permutations=20_000).p_value[0]
    assert ours == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 20_000) ** 0.5)


def test_columns_without_spread_show_nothing():
    flat = van_elteren(np.ones((6, 1)), np.arange(6) < 3)
    assert [float(part[0]) for part in flat] == [0, 1, 0.5, 0]
    split = van_elteren([[0.0], [0], [2], [2]], np.arange(4) > 1)
    assert split.shift[0] == np.inf
    assert split.superiority[0] == 1


@pytest.mark.parametrize(("method", "n_sets"), [("van_elteren", 10_000), ("permutation", 4_000)])
def test_null_rejects_at_its_level_in_unbalanced_strata_with_ties(method, n_sets):
    table = factor_contrasts(
        zero_heavy(n_sets, seed=1),
        GROUP,
        batch=BATCH,
        reference="a",
        method=method,
        n_permutations=999,
    )
    assert 0.04 < (table["p_value"] <= 0.05).mean() < 0.06  # Monte-Carlo error .002 and .003


def test_strata_are_needed_for_that():
    table = factor_contrasts(zero_heavy(1000, seed=1), GROUP, reference="a")
    assert (table["p_value"] <= 0.05).mean() > 0.9


def test_planted_difference_is_found():
    values = zero_heavy(500, seed=2)
    normal = np.random.default_rng(3).normal(size=(len(BATCH), 500)) + (GROUP == "b")[:, None]
    table = factor_contrasts(np.hstack([values, normal]), GROUP, batch=BATCH, reference="a")
    planted = table[500:]
    assert (planted["status"] == "difference").mean() > 0.75
    assert planted["effect"].mean() == pytest.approx(1, abs=0.05)
    assert planted["superiority"].mean() == pytest.approx(norm.cdf(2**-0.5), abs=0.01)
    assert (table["status"][:500] == "difference").mean() < 0.06
    assert np.allclose(table["q_value"], false_discovery_control(table["p_value"].to_numpy()))


def test_confounded_designs_are_refused():
    values = np.random.default_rng(0).normal(size=(40, 2))
    group, batch = np.repeat(["a", "b", "c"], [15, 15, 10]), np.repeat(["x", "y"], [15, 25])
    table = factor_contrasts(values, group, batch=batch, reference="a")
    assert set(table["status"]) == {"confounded with batch"}
    assert table[["effect", "superiority", "z", "p_value", "q_value"]].isna().all(axis=None)
    assert table["strata"][0] == "x 0/15; y 15/0"
    assert table["n_left_out"].tolist() == [30, 25] * 2
    pair = factor_contrasts(values, group, batch=batch, reference="b").iloc[1]
    assert (pair["group"], pair["status"]) == ("c", "no difference shown")
    group[0] = "b"  # one sample of b in batch x: below min_samples
    few = factor_contrasts(values, group, batch=batch, reference="a")
    assert few["status"].eq("confounded with batch").all()
    one = factor_contrasts(values, group, batch=batch, reference="a", min_samples=1)
    assert one["status"].tolist()[0] != "confounded with batch"
    alone = factor_contrasts(values[:18], group[:18], reference="a")
    assert set(alone["status"]) == {"too few samples"}


def test_factors_of_one_study_are_no_finding():
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b", "c"], 10)
    scores = pd.DataFrame({"shared_1": rng.normal(size=30), "a_1": rng.gamma(1, 1, 30)})
    active = np.ones((30, 2), dtype=bool)
    active[10:, 1] = False
    scores.loc[10:, "a_1"] = 0
    table = factor_contrasts(scores, group, active=active)
    assert table["factor"].tolist() == ["shared_1"] * 3 + ["a_1"] * 3
    assert table["group"].tolist() == ["a", "b", "c"] * 2
    assert set(table["reference"]) == {"rest"}
    assert table["status"][3:].tolist() == ["absent by design"] * 3
    assert table["p_value"][:3].notna().all()


def test_labels_are_permuted_within_strata():
    labels, strata = np.arange(100), np.arange(100) % 3
    permuted = permuted_within(labels, strata, 0)
    assert np.array_equal(permuted % 3, strata)
    assert sorted(permuted) == list(range(100))
    assert (permuted != labels).mean() > 0.8
    assert np.array_equal(permuted, permuted_within(labels, strata, 0))
    assert not np.array_equal(permuted, permuted_within(labels, strata, 1))
    words = permuted_within(np.array(["a", "bb", "c"]), ["x", "x", "y"], 0)
    assert words[2] == "c"
    with pytest.raises(ValueError, match=r"labels as long as strata"):
        permuted_within([1, 2], [0], 0)


BAD = {
    "shape": ({"scores": np.ones(4)}, r"scores must be \(N, K\), got shape \(4,\)"),
    "nan": ({"scores": np.full((4, 1), np.nan)}, r"scores hold 4 values that are not finite"),
    "names": ({"names": ["f", "g"]}, r"expected 1 different names, got 'f', 'g'"),
    "length": ({"group": ["a", "b"]}, r"expected group for 4 samples, got 2"),
    "missing": ({"batch": ["x", "x", None, "y"]}, r"batch is missing for 1 of 4 samples"),
    "one group": ({"group": ["a"] * 4}, r"two groups or more, got 'a'"),
    "reference": ({"reference": "HC"}, r"reference 'HC' is none of the groups 'a', 'b'"),
    "method": ({"method": "t"}, r"method must be 'van_elteren' or 'permutation', got 't'"),
    "samples": ({"min_samples": 0}, r"min_samples must be at least 1"),
    "active": ({"active": np.ones((4, 1))}, r"active must be Boolean \(4, 1\), got float64"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_inputs_are_refused(options, message):
    good = {"scores": np.arange(4.0)[:, None], "group": ["a", "b"] * 2}
    with pytest.raises(ValueError, match=message):
        factor_contrasts(**{**good, **options})


def test_bad_columns_are_refused():
    group = np.array([True, False])
    with pytest.raises(TypeError, match=r"in_group must be Boolean, got int64"):
        van_elteren([1, 2], np.array([1, 0]))
    with pytest.raises(ValueError, match=r"values must be finite"):
        van_elteren([1, np.inf], group)
    with pytest.raises(ValueError, match=r"expected values \(N, K\)"):
        van_elteren([1, 2, 3], group)
    with pytest.raises(ValueError, match=r"no stratum holds samples of both sides"):
        van_elteren([1, 2], group, [0, 1])
