import math

import pytest
import torch


def test_misfit_and_no_misfit_of_one_number(result):
    replicates = torch.linspace(-1, 1, 99)
    found = result([4.0], replicates).verdict()
    assert str(found) == (
        "d shows misfit: its held-out value 4 lies 6.8 sd above the mean of 99 replicates "
        "(two-sided p = 0.02)."
    )
    assert (found.decision, found.passed, found.p_value) == ("misfit", False, 0.02)
    assert (found.n_rejected, found.n_values, found.worst) == (1, 1, ())
    assert found.effect == pytest.approx(4 / replicates.double().std().item())
    found = result([-0.001], replicates).verdict()
    assert str(found) == (
        "d shows no misfit: its held-out value -0.001 lies 0.0017 sd below the mean of "
        "99 replicates (two-sided p = 1)."
    )
    assert (found.decision, found.passed, found.n_rejected) == ("no misfit", True, 0)


def test_vector_names_the_worst_values(result):
    replicates = torch.randn(399, 4).double()
    found = result([[0.0, -9.0, 0.0, 7.0]], replicates, n_features=4)
    verdict = found.verdict(labels=["IGJ", "CD79A", "NKG7", "LYZ"])
    z = found.z.tolist()
    assert str(verdict).startswith(
        "d shows misfit in 2 of 4 features of the held-out data at a false discovery rate of "
        f"0.05; largest effects in sd: CD79A {z[1]:+.2g}, LYZ {z[3]:+.2g}, "
    )
    assert str(verdict).endswith(" (399 replicates).")
    assert verdict.worst[:2] == ("CD79A", "LYZ")
    assert (verdict.n_rejected, verdict.n_values, verdict.effect) == (2, 4, z[1])
    assert "feature 1 -" in str(found.verdict())
    assert "family-wise error of 0.05" in str(found.verdict(method="holm"))
    none = result([[0.0] * 4], replicates).verdict()
    assert str(none).startswith("d shows no misfit in any of 4 values of the held-out data")
    assert none.passed


def test_names_and_axis_come_from_the_result(result):
    groups = result(
        [[5.0, 0.0]], torch.randn(99, 2).double(), axis="group", labels=("healthy", "NSCLC")
    )
    assert "misfit in 1 of 2 groups" in str(groups.verdict())
    assert groups.verdict().worst == ("healthy", "NSCLC")


def test_infinite_effects_are_counted(result):
    mixed = result([[2.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]] * 60).verdict()
    assert "largest effects in sd: feature 1 +3, 1 infinite (replicates do not vary)" in str(mixed)
    alone = result([[2.0, 1.0]], [[1.0, 1.0]] * 120).verdict()
    assert "feature 1 +0, 1 infinite" in str(alone)
    assert alone.worst == ("feature 0", "feature 1")


def test_what_is_not_calibrated_is_said(result):
    found = result([4.0], torch.arange(99.0), calibrated=False, check="ppc").verdict()
    assert "its fitted value 4" in str(found)
    assert str(found).endswith("; the p-value is not calibrated.")
    assert not found.calibrated


def test_no_verdict_where_none_is_possible(result):
    few = result([4.0], torch.arange(9.0))
    assert str(few.verdict()) == (
        "No verdict on d: 9 draws cannot give a p-value below 0.2, and the level is 0.05."
    )
    assert few.verdict().passed is None
    assert "shows" in str(few.verdict(alpha=0.3))
    values = torch.zeros(99)
    refused = result(values, values, kind="realised", regime=5.0, calibrated=False, n_new=1000)
    assert str(refused.verdict()) == (
        "No verdict on d: the regime number 5 is above 1, so that this realised check is "
        "power-limited or degenerate; use kind='plugin', or at most 1 held-out row."
    )
    assert refused.n_new_in_regime == 1  # 1000 (.2 / 5)^2 = 1.6
    assert "is unknown" in str(result(values, values, kind="realised").verdict())
    assert "shows" in str(result(values, values, kind="realised", regime=0.1).verdict())
    assert result(values, values, kind="realised", regime=0.1).n_new_in_regime is None
    assert "shows" in str(result(values, values, kind="realised", check="ppc").verdict())


def test_too_few_draws_for_single_values_judge_them_together(result):
    """Ten values need 2 * 10 / .05 = 400 draws before one of them can be rejected."""
    replicates = torch.randn(99, 10).double()
    fits = result([[0.0] * 10], replicates, n_features=10).verdict()
    assert (fits.decision, fits.joint, fits.n_rejected) == ("no misfit", True, 0)
    assert "shows no misfit in the 10 features of the held-out data taken together" in str(fits)
    assert "99 draws are too few to judge single features; largest effects" in str(fits)
    shifted = result([[9.0] * 3 + [1.5] * 7], replicates)
    fails = shifted.verdict(noun="gene", labels=[f"g{j}" for j in range(10)])
    assert (fails.decision, fails.joint, fails.n_rejected) == ("misfit", True, 0)
    assert fails.p_value == shifted.aggregate("ranks") <= 0.05
    assert (
        f"shows misfit in the 10 genes of the held-out data taken together (p = {fails.p_value:.2g}"
        in str(fails)
    )
    assert "99 draws are too few to say in which; largest effects in sd: g" in str(fails)
    many = result([[9.0] * 10], replicates).verdict()
    assert (many.decision, many.joint, many.n_rejected) == ("misfit", False, 10)


def spaced_replicates(n_draws, n_values):
    """Every column holds the whole numbers around 0, in random order: mean 0, 99 have sd 28.7."""
    numbers = torch.arange(n_draws).double() - (n_draws - 1) / 2
    return torch.stack([numbers[torch.randperm(n_draws)] for _ in range(n_values)], 1)


def test_one_value_far_off_is_no_verdict_where_the_draws_cannot_judge_it(result):
    """2 * 10 / .05 - 1 = 399 draws would reject one of ten values; by the ranks, all ten fit."""
    replicates = spaced_replicates(99, 10)
    found = result([[0.0] * 9 + [250.0]], replicates, axis="feature")
    verdict = found.verdict(noun="gene", labels=[f"g{j}" for j in range(10)])
    z, joint = 250 / replicates[:, 0].std().item(), found.aggregate("ranks")
    assert str(verdict) == (
        f"No verdict on d: the 10 genes taken together show no misfit (p = {joint:.2g}), but g9 "
        f"lies {z:.2g} sd above its replicates and 99 draws are too few to judge single genes "
        f"(399 would do); largest effects in sd: g9 +{z:.2g}, g0 +0, g1 +0."
    )
    assert (verdict.decision, verdict.passed, verdict.joint) == ("no verdict", None, True)
    assert (verdict.p_value, verdict.n_rejected, verdict.worst[0]) == (joint, 0, "g9")
    assert joint > 0.5
    uncalibrated = result([[0.0] * 9 + [250.0]], replicates, calibrated=False).verdict()
    assert str(uncalibrated).endswith("+0; the p-value is not calibrated.")
    enough = result([[0.0] * 9 + [2500.0]], spaced_replicates(399, 10)).verdict()
    assert (enough.decision, enough.joint, enough.n_rejected) == ("misfit", False, 1)


def test_several_values_far_off_are_counted(result):
    replicates = spaced_replicates(99, 20)
    two = result([[0.0] * 18 + [-120.0, 90.0]], replicates).verdict(noun="study")
    assert two.decision == "no verdict"
    assert "but 2 studies lie more than 3 sd from their replicates, " in str(two)  # 3.02
    sd = replicates[:, 0].std().item()
    assert f", value 18 {120 / sd:.2g} sd below, and 99 draws are too few" in str(two)


def test_values_that_do_not_look_like_a_misfit_pass_together(result):
    """The limit of ten values is 2.81 sd; replicates as far off as the data excuse them."""
    replicates = spaced_replicates(99, 10)
    sd = replicates[:, 0].std().item()
    near, far = (result([[0.0] * 9 + [z * sd]], replicates).verdict() for z in (2.8, 2.82))
    assert (near.decision, far.decision) == ("no misfit", "no verdict")
    replicates[0, 9] = 300.0
    excused = result([[0.0] * 9 + [250.0]], replicates)
    assert excused.z[9].item() > 4
    assert excused.verdict().decision == "no misfit"
    assert "99 draws are too few to judge single values" in str(excused.verdict())


def test_data_that_vary_where_no_replicate_does_are_no_verdict(result):
    replicates = spaced_replicates(99, 10)
    replicates[:, 4] = 1.0
    found = result([[0.0] * 4 + [2.0] + [0.0] * 5], replicates).verdict()
    assert found.decision == "no verdict"
    assert "but value 4 lies infinitely many sd above its replicates and 99 draws" in str(found)
    same = result([[0.0] * 4 + [1.0] + [0.0] * 5], replicates).verdict()
    assert same.decision == "no misfit"


def test_joint_verdicts_reject_five_per_cent_of_right_models(result):
    """1,000 sets of 20 normal values, S = 99: misfit .05, no verdict about .05 (error .007)."""
    sets = torch.randn(1000, 100, 20).double()
    found = [result(x[:1], x[1:], torch.rand(20)).verdict().decision for x in sets]
    for decision in ("misfit", "no verdict"):
        assert found.count(decision) / 1000 == pytest.approx(0.05, abs=3.3 * 0.007)


def test_no_joint_verdict_of_realised_checks(result):
    values = torch.randn(99, 10).double()
    realised = result(values * 0 + 0.1, values, kind="realised", regime=0.1).verdict()
    assert realised.decision == "no verdict"
    assert "99 draws are too few to reject single values among 10" in str(realised)


def test_refits_carry_the_decision(result):
    """Excess 4 - 49: extreme among the replicates, ordinary among the refits."""
    refits = torch.linspace(-100, 100, 59).double()
    found = result([4.0], torch.arange(99.0), refitted=refits)
    assert found.decided_by == "refit rank"
    assert found.verdict().decision == "no misfit"
    assert "among 59 refits" in str(found.verdict())
    assert result([4.0], torch.arange(99.0), refitted=refits[:20]).decided_by == "refit t"
    assert result([4.0], torch.arange(99.0), refitted=refits[:2]).verdict().decision != "no verdict"
    strict = result([4.0], torch.arange(99.0), refitted=refits).verdict(alpha=0.01)
    assert "59 refits cannot give a p-value below 0.033" in str(strict)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_impossible_levels_are_refused(result, alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got"):
        result([4.0], torch.arange(99.0)).verdict(alpha)


def test_infinite_values_of_one_number(result):
    replicates = torch.linspace(-1, 1, 99)
    outside = str(result([math.inf], replicates).verdict())
    assert "its held-out value inf lies infinitely many sd above the mean" in outside
    constant = str(result([0.0], torch.ones(99)).verdict())
    assert "its held-out value 0 lies infinitely many sd below the mean" in constant
    replicates[:2] = math.inf
    unknown = result([0.5], replicates).verdict()
    assert "lies an undefined number of sd from the mean of 99 replicates" in str(unknown)
    assert unknown.decision == "no misfit"


def test_infinite_values_of_a_vector_are_told_apart(result):
    replicates = torch.randn(399, 4).double()
    replicates[:, 0] = 1
    replicates[:2, 1] = math.inf
    found = result([[2.0, 0.0, math.inf, 9.0]], replicates, n_features=4).verdict()
    assert (
        ", 1 infinite (replicates do not vary), 1 infinite (as in the data), 1 undefined ("
        in str(found)
    )
    assert math.isinf(found.effect)


def test_a_single_value_and_a_single_draw_are_in_the_singular(result):
    replicates = torch.randn(99, 1).double()
    one = result([[9.0]], replicates, n_features=1)
    assert str(one.verdict(noun="gene")).startswith("d shows misfit in the only gene of the held")
    none = result([[0.0]], replicates, n_features=1).verdict()
    assert str(none).startswith("d shows no misfit in the only feature of the held-out data")
    assert "1 draw cannot" in str(result([1.0], [2.0]).verdict())
    two = result([[9.0, 0.0]], torch.randn(399, 2).double()).verdict(noun="study")
    assert "misfit in 1 of 2 studies" in str(two)


def test_a_regime_out_of_reach_names_no_number_of_rows(result):
    values = torch.zeros(99)
    refused = result(values, values, kind="realised", regime=math.inf)
    assert str(refused.verdict()).endswith("degenerate; use kind='plugin'.")
    assert refused.summary()["regime"] is None


def test_refits_of_a_vector_are_counted(result):
    refits = torch.randn(5, 2).double()
    found = result([[0.0, 0.0]], torch.randn(99, 2).double(), refitted=refits).verdict()
    assert str(found).endswith("(99 replicates, 5 refits).")
