"""Margins, power, and what a verdict may say."""

import json

import numpy as np
import pytest
import torch

from probinterp.criticism import comparison as cmp
from probinterp.criticism.comparison.tango import p_above, p_below


def accuracy(lost, gained, n, both=None):
    both = (n - lost - gained) * 4 // 5 if both is None else both
    return cmp.accuracy_of_cells(cmp.Cells(both, lost, gained, n - lost - gained - both))


@pytest.mark.parametrize(
    ("q", "n", "expected"),
    [
        (0.02, 5000, (0.50, 0.59, 0.56)),
        (0.05, 5000, (0.79, 0.93, 0.89)),
        (0.10, 5000, (1.11, 1.31, 1.25)),
        (0.20, 5000, (1.57, 1.85, 1.77)),
        (0.02, 5794, (0.46, 0.54, 0.52)),
        (0.05, 5794, (0.73, 0.86, 0.82)),
        (0.10, 5794, (1.03, 1.22, 1.16)),
        (0.20, 5794, (1.46, 1.72, 1.65)),
        (0.02, 10_000, (0.35, 0.41, 0.40)),
        (0.05, 10_000, (0.56, 0.65, 0.63)),
        (0.10, 10_000, (0.79, 0.93, 0.89)),
        (0.20, 10_000, (1.11, 1.31, 1.25)),
    ],
)
def test_margins_that_can_be_tested(q, n, expected):
    found = (
        cmp.minimal_margin(n, q),
        cmp.minimal_margin(n, q, kind="tost"),
        cmp.minimal_detectable_difference(n, q),
    )
    assert [round(100 * v, 2) for v in found] == pytest.approx(expected, abs=1e-9)


def test_power_and_minimal_margin_invert_each_other():
    for kind in ("noninferiority", "tost"):
        margin = cmp.minimal_margin(5000, 0.05, 0.8, kind)
        assert cmp.power(5000, 0.05, margin, kind) == pytest.approx(0.8, abs=1e-9)
        assert cmp.required_images(0.05, margin, 0.8, kind) in (5000, 5001)
    assert cmp.power(5000, 0.05, cmp.minimal_margin(5000, 0.05), "tost") == pytest.approx(
        0.6, abs=1e-9
    )
    assert cmp.power(100, 0.5, 0.001) == 0
    assert cmp.power(10, 0.0, 0.01) == 1


@pytest.mark.parametrize("change", [0.0, -0.003])
def test_power_agrees_with_simulated_tests(change):
    """20,000 tables of 5,000 images with a discordance of 5 %; Monte-Carlo error .003."""
    n, q = 5000, 0.05
    shares = ((q + change) / 2, (q - change) / 2, 1 - q)
    gained, lost, _ = np.random.default_rng(3).multinomial(n, shares, size=20_000).T
    tables, place = np.unique(np.stack([lost, gained], 1), axis=0, return_inverse=True)
    for margin in (0.00786, 0.00925):
        p = np.array(
            [
                (p_above(c, -margin), p_below(c, margin))
                for c in (cmp.Cells(0, a, b, n - a - b) for a, b in tables.tolist())
            ]
        )[place.ravel()]
        shown = (p <= 0.05).all(1).mean()
        loss_excluded = (p[:, 0] <= 0.05).mean()
        options = {"difference": change}
        assert loss_excluded == pytest.approx(
            cmp.power(n, q, margin, "noninferiority", **options), abs=0.01
        )
        assert shown == pytest.approx(cmp.power(n, q, margin, "tost", **options), abs=0.01)
        if change == 0:
            expected = {0.00786: (0.799, 0.601), 0.00925: (None, 0.798)}[margin]
            assert shown == pytest.approx(expected[1], abs=0.01)


def test_margin_tests_are_their_intervals():
    for lost, gained in ((20, 18), (70, 20), (95, 60), (5, 48)):
        found = accuracy(lost, gained, 5000)
        low, high = found.bounds(0.05)[:2]
        ni = cmp.noninferiority(found, margin=0.01)
        both = cmp.equivalence(found, margin=0.01)
        assert ni.shown == (low > -0.01)
        assert both.shown == (low > -0.01 and high < 0.01)
        assert ni.bounds[:2] == both.bounds[:2] == (low, high)
        assert both.p_value >= ni.p_value


def test_margins_are_required_and_fractions():
    found = accuracy(20, 18, 5000)
    with pytest.raises(TypeError, match="margin"):
        cmp.noninferiority(found)
    with pytest.raises(TypeError, match="margin"):
        cmp.verdict(found)
    with pytest.raises(ValueError, match=r"fraction \(0.01 is one percentage point\), got 1"):
        cmp.noninferiority(found, margin=1)
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        cmp.equivalence(found, margin=0)
    with pytest.raises(ValueError, match="declared must be one of before, after"):
        cmp.verdict(found, margin=0.01, declared="later")
    with pytest.raises(ValueError, match="goal must be one of noninferiority, equivalence"):
        cmp.verdict(found, margin=0.01, goal="superiority")
    with pytest.raises(ValueError, match="alpha must lie between 0 and 0.5"):
        cmp.verdict(found, margin=0.01, alpha=0.5)


@pytest.mark.parametrize(
    ("counts", "goal", "decision", "detected", "beyond", "text"),
    [
        (
            (20, 18, 5000),
            "noninferiority",
            "preserves",
            False,
            False,
            "preserves accuracy within 1 pp",
        ),
        (
            (20, 18, 5000),
            "equivalence",
            "preserves",
            False,
            False,
            "preserves accuracy within 1 pp",
        ),
        ((0, 0, 5000), "equivalence", "preserves", False, False, "none of them discordant"),
        ((60, 40, 10_000), "equivalence", "preserves", True, False, "it is real, but smaller than"),
        ((40, 60, 10_000), "equivalence", "preserves", True, False, "a gain of 0.2 pp is detected"),
        (
            (20, 90, 5000),
            "noninferiority",
            "preserves",
            True,
            False,
            "and a gain of 1.4 pp is detected",
        ),
        ((20, 90, 5000), "equivalence", "changes", True, True, "a gain of 1.4 pp, more than 1 pp"),
        ((70, 20, 5000), "noninferiority", "changes", True, False, "larger than 1 pp is open"),
        (
            (600, 20, 5000),
            "noninferiority",
            "changes",
            True,
            True,
            "a loss of 11.6 pp, more than 1 pp",
        ),
        (
            (0, 0, 50),
            "noninferiority",
            "not enough data to tell",
            False,
            False,
            "nor a loss of 1 pp",
        ),
        (
            (9, 9, 300),
            "equivalence",
            "not enough data to tell",
            False,
            False,
            "nor a change of 1 pp",
        ),
    ],
)
def test_what_a_verdict_says(counts, goal, decision, detected, beyond, text):
    found = cmp.verdict(accuracy(*counts), margin=0.01, goal=goal)
    assert (found.decision, found.detected, found.beyond) == (decision, detected, beyond)
    assert text in str(found)
    assert json.loads(json.dumps(found.numbers()))["decision"] == decision
    assert found.passed is {"preserves": True, "changes": False}.get(decision)


def test_a_difference_that_is_not_significant_is_never_preserved():
    """The larger the table with the same shares, the same question gets another answer."""
    said = [cmp.verdict(accuracy(4 * k, 4 * k, 200 * k), margin=0.01) for k in (1, 5, 20, 60)]
    assert all(v.p_change > 0.5 for v in said)
    assert [v.decision for v in said] == ["not enough data to tell"] * 2 + ["preserves"] * 2
    for lost in range(0, 40, 5):
        for gained in range(0, 40, 5):
            table = accuracy(lost, gained, 1000)
            decision = cmp.verdict(table, margin=0.01).decision
            assert (decision == "preserves") == (table.bounds(0.05).low > -0.01)


def test_the_advice_gives_enough_images():
    found = cmp.verdict(accuracy(9, 9, 300), margin=0.01)
    needed = cmp.required_images(0.06, 0.01)
    assert f"at this margin it takes {needed:,}" in str(found)
    assert cmp.power(needed, 0.06, 0.01, "noninferiority") == pytest.approx(0.8, abs=1e-3)


def test_reservations_are_said():
    floor = cmp.self_discordance(torch.arange(1000), torch.arange(1000).clamp(max=996))
    assert (floor.n_discordant, floor.discordance) == (3, 0.003)
    found = str(cmp.verdict(accuracy(2, 2, 1000), margin=0.01, declared="after", floor=floor))
    assert "declared after the data had been seen" in found
    assert "differs from itself on 3 of 1,000 images (0.3 %)" in found


def test_the_floor_has_an_exact_upper_bound():
    from scipy.stats import binomtest

    floor = cmp.self_discordance([1, 0, 1, 1, 0], [1, 1, 1, 1, 0])
    expected = binomtest(1, 5, alternative="less").proportion_ci(0.95).high
    assert floor.upper == pytest.approx(expected)
    assert cmp.self_discordance([1], [0]).upper == 1
    with pytest.raises(ValueError, match="vectors of the same images"):
        cmp.self_discordance([1, 0], [1])


def test_a_family_corrects_each_question_by_holm():
    comparisons = {
        "a": accuracy(30, 24, 5000),
        "b": accuracy(70, 45, 5000),
        "c": accuracy(58, 37, 5000),
    }
    alone = {k: cmp.verdict(c, margin=0.01) for k, c in comparisons.items()}
    together = cmp.family("windows", comparisons, margin=0.01)
    assert together.correction == "holm"
    preserved = cmp.holm([v.p_preserved for v in alone.values()]).tolist()
    assert [v.p_preserved for v in together.verdicts.values()] == pytest.approx(preserved)
    changed = cmp.holm([v.p_change for v in alone.values()]).tolist()
    assert [v.p_change for v in together.verdicts.values()] == pytest.approx(changed)
    assert alone["c"].detected
    assert not together.verdicts["c"].detected
    assert "Holm's correction over 3 comparisons (windows)" in str(together.verdicts["a"])
    with pytest.raises(ValueError, match="family 'none' has no comparison"):
        cmp.family("none", {}, margin=0.01)


def test_a_detected_gain_is_no_reason_to_refuse_a_proxy():
    """Eleven losses leave the correction of the margin tests severe, that of the changes mild."""
    comparisons = {"gain": accuracy(14, 28, 100)}
    comparisons |= {f"loss {i}": accuracy(38, 2, 100) for i in range(11)}
    welcome = cmp.family("windows", comparisons, margin=0.01).verdicts
    assert welcome["gain"].p_preserved > 0.05 > welcome["gain"].p_change
    assert (welcome["gain"].decision, welcome["gain"].detected) == ("not enough data to tell", True)
    assert "a gain of 14 pp is detected" in str(welcome["gain"])
    assert "a loss of 1 pp is not excluded at this level" in str(welcome["gain"])
    assert {v.decision for k, v in welcome.items() if k != "gain"} == {"changes"}
    either = cmp.family("windows", comparisons, margin=0.01, goal="equivalence").verdicts
    assert either["gain"].decision == "changes"


@pytest.mark.slow
def test_wrong_verdicts_are_as_rare_as_promised():
    """2,000 tables of 2,000 images: "preserves" at the margin, "changes" without any change."""
    generator, n, q = np.random.default_rng(11), 2000, 0.06
    rates = {}
    for change, wrong in ((-0.01, "preserves"), (0.0, "changes")):
        shares = ((q + change) / 2, (q - change) / 2, 1 - q)
        gained, lost, _ = generator.multinomial(n, shares, size=2000).T
        tables, counts = np.unique(np.stack([lost, gained], 1), axis=0, return_counts=True)
        decisions = [
            cmp.verdict(
                cmp.accuracy_of_cells(cmp.Cells(0, a, b, n - a - b), n_boot=100), margin=0.01
            ).decision
            for a, b in tables.tolist()
        ]
        rates[wrong] = counts[[d == wrong for d in decisions]].sum() / 2000
    assert rates["preserves"] == pytest.approx(0.05, abs=0.015)
    assert (
        0.01 < rates["changes"] < 0.05
    )  # changes that are detected inside the margin do not count
