"""Paired accuracy: published examples, other software, brute force."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, bootstrap, dirichlet

from probinterp.criticism import comparison as cmp
from probinterp.criticism.comparison.tango import lost_share, p_above, p_below, tango_score

# both, network only, proxy only, neither: the proxy is the first of the published pairs
AIRWAY = cmp.Cells(59, 16, 6, 80)  # Fagerland, Lydersen and Laake: airway hyper-responsiveness
SMALL = cmp.Cells(1, 7, 1, 12)  # the same: complete response of 21 patients
LENSES = cmp.Cells(43, 1, 0, 0)  # Tango 1998: disinfection of soft contact lenses


@pytest.mark.parametrize(
    ("cells", "interval", "expected"),
    [
        (AIRWAY, "tango", (-0.1240, -0.0054)),
        (AIRWAY, "wald", (-0.1184, -0.0058)),
        (AIRWAY, "agresti_min", (-0.1182, -0.0045)),
        (SMALL, "tango", (-0.5172, -0.0260)),
        (SMALL, "wald", (-0.5197, -0.0517)),
        (SMALL, "bonett_price", (-0.5084, -0.0134)),
        (LENSES, "tango", (-0.1181, 0.0594)),
        (cmp.Cells(50, 20, 40, 50), "tango", (0.0309, 0.2181)),
    ],
)
def test_intervals_of_published_tables(cells, interval, expected):
    """Values printed by the R package contingencytables and by Tango, to four decimals."""
    found = getattr(cmp.accuracy_of_cells(cells), interval)
    assert [round(end, 4) for end in found[:2]] == list(expected)


def test_tango_at_ninety_percent_for_a_zero_cell():
    found = cmp.tango_interval(1, 0, 44, level=0.90)
    assert (round(found.low, 4), round(found.high, 4)) == (-0.0957, 0.0365)


@pytest.mark.parametrize(
    ("cells", "method", "expected"),
    [
        (AIRWAY, "exact", 0.052479),
        (AIRWAY, "midp", 0.034690),
        (AIRWAY, "asymptotic", 0.033006),
        (SMALL, "exact", 0.070313),
        (SMALL, "midp", 0.039063),
    ],
)
def test_mcnemar_of_published_tables(cells, method, expected):
    p = cmp.mcnemar(cells.network_only, cells.proxy_only, method)
    assert p == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 3), (17, 4), (250, 301)])
def test_mcnemar_equals_scipy_and_its_mid_p_the_definition(lost, gained):
    m, k = lost + gained, min(lost, gained)
    exact = binomtest(k, m).pvalue if m else 1.0
    assert cmp.mcnemar(lost, gained, "exact") == pytest.approx(exact, rel=1e-12)
    if not m:
        assert cmp.mcnemar(0, 0) == 1
        return
    mass = np.array([math.comb(m, i) / 2**m for i in range(m + 1)])
    outside = mass[np.minimum(np.arange(m + 1), m - np.arange(m + 1)) < k].sum()
    at_k = mass[k] if 2 * k == m else 2 * mass[k]
    assert cmp.mcnemar(lost, gained) == pytest.approx(outside + at_k / 2, rel=1e-10)


def test_far_tails_of_mcnemar_keep_their_digits():
    """2 * sum_{i <= 3} C(400, i) / 2^400 by whole numbers."""
    exact = 2 * sum(math.comb(400, i) for i in range(4)) / 2**400
    assert cmp.mcnemar(397, 3, "exact") == pytest.approx(exact, rel=1e-10)
    assert 0 < cmp.mcnemar(397, 3) < exact


@pytest.mark.parametrize(
    "counts", [(16, 6, 161), (7, 1, 21), (1, 0, 44), (0, 9, 60), (125, 125, 5000)]
)
@pytest.mark.parametrize("change", [-0.3, -0.05, 0.01, 0.2])
def test_the_constrained_estimate_maximises_the_likelihood(counts, change):
    lost, gained, n = counts

    def loss(q):
        cells = ((gained, q + change), (lost, q), (n - lost - gained, 1 - 2 * q - change))
        return -sum(count * math.log(p) for count, p in cells if count)

    low, high = max(0.0, -change), (1 - change) / 2
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    assert lost_share(*counts, change) == pytest.approx(found.x, abs=1e-6)


@pytest.mark.parametrize(
    "cells", [AIRWAY, SMALL, LENSES, cmp.Cells(3, 0, 5, 2), cmp.Cells(0, 0, 4, 0)]
)
def test_tango_limits_solve_the_score_equation_of_the_likelihood(cells):
    """Against brute force: the score from a numerically maximised likelihood, by bisection."""

    def score(change):
        def loss(q):
            parts = (
                (cells.proxy_only, q + change),
                (cells.network_only, q),
                (cells.both + cells.neither, 1 - 2 * q - change),
            )
            return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

        span = (max(0.0, -change), (1 - change) / 2)
        q = minimize_scalar(loss, bounds=span, method="bounded", options={"xatol": 1e-12}).x
        variance = 2 * q + change - change**2
        return (cells.n * (cells.difference - change)) / math.sqrt(cells.n * max(variance, 1e-300))

    def root(target, low, high):
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > target else (low, middle)
        return low

    found = cmp.accuracy_of_cells(cells).tango
    z = 1.959963984540054
    assert found.low == pytest.approx(root(z, -1 + 1e-9, cells.difference - 1e-9), abs=1e-6)
    if cells.difference < 1:
        assert found.high == pytest.approx(root(-z, cells.difference + 1e-9, 1 - 1e-9), abs=1e-6)
    else:
        assert found.high == 1


def test_tango_tests_and_bounds_agree_and_are_symmetric():
    for cells in (AIRWAY, SMALL, LENSES, cmp.Cells(90, 0, 0, 10)):
        bounds = cmp.accuracy_of_cells(cells).bounds(0.05)
        assert p_above(cells, bounds.low) == pytest.approx(0.05, abs=1e-9)
        assert p_below(cells, bounds.high) == pytest.approx(0.05, abs=1e-9)
        mirrored = cmp.accuracy_of_cells(cells.swapped).bounds(0.05)
        assert (mirrored.low, mirrored.high) == pytest.approx((-bounds.high, -bounds.low), abs=1e-9)
        steps = np.linspace(-0.99, 0.99, 199)
        scores = [tango_score(cells.network_only, cells.proxy_only, cells.n, d) for d in steps]
        assert (np.diff(scores) <= 1e-9).all()


@pytest.mark.parametrize("lost", [0, 30])
def test_tango_where_every_image_changes(lost):
    found = cmp.tango_interval(lost, 30 - lost, 30)
    assert (found.high, -found.low)[lost == 30] == 1
    assert found.low < found.high


@pytest.mark.parametrize("n", [50, 5000])
def test_a_proxy_equal_to_the_network(n):
    """No discordance: z^2 / (n + z^2) solves n D / (1 - D) = z^2."""
    correct = torch.arange(n) % 5 > 0
    found = cmp.paired_accuracy(correct, correct)
    assert found.cells == (4 * n // 5, 0, 0, n // 5)
    assert (found.p_midp, found.p_exact, found.difference) == (1, 1, 0)
    z2 = 1.959963984540054**2
    assert found.tango.high == pytest.approx(z2 / (n + z2), rel=1e-9)
    assert 0.0 in found.tango
    assert found.wald.half_width == 0
    assert found.bca[:2] == (0, 0)
    low, high = found.posterior.interval[:2]
    assert low < 0 < high


def test_wilson_equals_scipy():
    for k, n in ((0, 10), (7, 10), (10, 10), (6165, 10_000)):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert cmp.wilson_interval(k, n)[:2] == pytest.approx(tuple(expected), abs=1e-12)
    halves = [cmp.wilson_interval(k, 100).half_width for k in (50, 55, 80)]
    assert [round(100 * h, 1) for h in halves] == [9.6, 9.6, 7.8]


@pytest.mark.parametrize("cells", [cmp.Cells(50, 20, 40, 50), cmp.Cells(120, 12, 25, 43)])
def test_bca_equals_scipy_within_one_image(cells):
    d = np.repeat(
        [1.0, -1.0, 0.0], [cells.proxy_only, cells.network_only, cells.both + cells.neither]
    )
    expected = bootstrap(
        (d,), np.mean, n_resamples=20_000, method="BCa", random_state=1, batch=2000
    ).confidence_interval
    found = cmp.bca_interval(cells, n_boot=100_000)
    assert found[:2] == pytest.approx(tuple(expected), abs=1 / cells.n + 1e-9)


def test_acceleration_is_that_of_the_jackknife():
    cells = cmp.Cells(50, 20, 40, 50)
    d = np.repeat([1.0, -1.0, 0.0], [40, 20, 100])
    left_out = (d.sum() - d) / 159
    centred = left_out.mean() - left_out
    jackknife = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    assert cmp.acceleration(cells) == pytest.approx(jackknife, rel=1e-10)
    assert round(cmp.acceleration(cells), 5) == -0.00072
    low, high = cmp.bca_interval(cells, n_boot=100_000)[:2]
    assert (low, high) == pytest.approx((0.0313, 0.2188), abs=1e-4)


def test_dirichlet_posterior_equals_draws():
    cells = cmp.Cells(300, 12, 9, 79)
    found = cmp.change_posterior(cells, rope=0.02)
    draws = dirichlet(np.array(cells) + 0.5).rvs(400_000, random_state=0)
    change = draws[:, 2] - draws[:, 1]
    assert found.mean == pytest.approx(change.mean(), abs=1e-4)
    for p, share in (
        (found.p_not_worse, change > -0.02),
        (found.p_within, np.abs(change) < 0.02),
        (found.p_worse, change < 0),
    ):
        assert p == pytest.approx(share.mean(), abs=0.003)
    assert found.interval[:2] == pytest.approx(np.quantile(change, [0.025, 0.975]), abs=3e-4)


def test_numbers_of_a_comparison_go_through_json():
    correct = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.8
    found = cmp.paired_accuracy(correct, ~correct)
    again = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert again["cells"]["network_only"] == int(correct.sum())
    assert again["tango"] == list(found.tango[:2])
    assert again["posterior"]["rope"] == 0.01


@pytest.mark.parametrize(
    ("network", "proxy", "text"),
    [
        ([1, 0], [1], "vectors of the same images"),
        ([], [], "no image"),
        ([1, 2], [1, 0], "correct_network must be true or false"),
        ([1, 0], [0.5, 1], "correct_proxy must be true or false"),
    ],
)
def test_bad_correctness_is_refused(network, proxy, text):
    with pytest.raises(ValueError, match=text):
        cmp.paired_accuracy(network, proxy)


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="network_only must be a count, got -1"):
        cmp.accuracy_of_cells(cmp.Cells(1, -1, 0, 0))
    with pytest.raises(ValueError, match="neither must be a count"):
        cmp.tango_interval(5, 6, 10)
    with pytest.raises(ValueError, match="method must be one of midp"):
        cmp.mcnemar(1, 2, "fisher")
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        cmp.paired_accuracy([1, 0], [1, 0], level=95)


@pytest.mark.parametrize(
    "design",
    [
        (5000, 0.025, 0.025),
        (5000, 0.012, 0.008),
        (500, 0.03, 0.02),
        (100, 0.05, 0.02),
        (5794, 0.06, 0.07),
    ],
)
def test_coverage_of_tango_is_nominal(design):
    """2,000 tables each; the binomial error of the rate is .005."""
    n, gain, loss = design
    gained, lost, _ = np.random.default_rng(7).multinomial(n, (gain, loss, 1 - gain - loss), 2000).T
    z, truth = 1.959963984540054, gain - loss
    inside = [
        abs(tango_score(c, b, n, truth)) <= z
        for b, c in zip(gained.tolist(), lost.tolist(), strict=True)
    ]
    expected = {100: 0.940}.get(n, 0.95)
    assert np.mean(inside) == pytest.approx(expected, abs=0.01)
    for i in range(0, 2000, 50):  # the interval is that test turned over
        assert (truth in cmp.tango_interval(int(lost[i]), int(gained[i]), n)) == inside[i]


COVERAGE = {  # Wald, Agresti-Min, Bonett-Price; 4,000 tables each
    (5000, 0.025, 0.025): (0.950, 0.950, 0.951),
    (5000, 0.012, 0.008): (0.946, 0.947, 0.948),
    (500, 0.03, 0.02): (0.952, 0.954, 0.961),
    (100, 0.05, 0.02): (0.937, 0.963, 0.975),
    (5794, 0.06, 0.07): (0.947, 0.947, 0.947),
}


@pytest.mark.parametrize("design", COVERAGE)
def test_coverage_of_the_other_intervals(design):
    """2,000 tables each; the binomial errors of both rates add up to .006."""
    n, gain, loss = design
    tables = np.random.default_rng(7).multinomial(n, (gain, loss, 1 - gain - loss), 2000).tolist()
    cells = [cmp.Cells(0, c, b, rest) for b, c, rest in tables]
    kinds = (cmp.wald_interval, cmp.agresti_min_interval, cmp.bonett_price_interval)
    for interval, expected in zip(kinds, COVERAGE[design], strict=True):
        inside = np.mean([gain - loss in interval(table) for table in cells])
        assert inside == pytest.approx(expected, abs=0.015)
