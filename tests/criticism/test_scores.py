"""Scores against numerical integration, other formulas, brute force, and their own propriety."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch.distributions import Gamma, Independent, NegativeBinomial, Normal, Poisson

from probinterp.criticism import (
    FunctionDraw,
    Score,
    compare_scores,
    coverage,
    crps,
    log_score,
)
from probinterp.criticism.ranked_probability import (
    crps_negative_binomial,
    crps_normal,
    crps_of,
    crps_poisson,
    fair_crps,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "mean", "scale"), [(0.3, 0.0, 1.0), (-4.0, 1.0, 0.5), (9.0, 2.0, 3.0)]
)
def test_normal_crps_is_the_integral(x, mean, scale):
    law = stats.norm(mean, scale)
    below = quad(lambda t: law.cdf(t) ** 2, -40, x, epsabs=1e-12, limit=200)[0]
    above = quad(lambda t: law.sf(t) ** 2, x, 40, epsabs=1e-12, limit=200)[0]
    found = crps_normal(tensor(x), tensor(mean), tensor(scale)).item()
    assert found == pytest.approx(below + above, rel=1e-8)


def summed(law, x, last=200000):
    """Sum of (F(k) - 1[k >= x])^2 over the whole numbers."""
    k = np.arange(last)
    return float(((law.cdf(k) - (k >= x)) ** 2).sum())


@pytest.mark.parametrize("rate", [0.01, 0.7, 5.0, 400.0])
def test_poisson_crps_is_the_sum(rate):
    for x in (0.0, 1.0, 4.0, 50.0):
        found = crps_poisson(tensor(x), tensor(rate)).item()
        assert found == pytest.approx(summed(stats.poisson(rate), x), rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "size"),
    [(2, 20), (2, 1), (0.3, 0.5), (50, 0.1), (500, 1.5), (2, 0.01), (5, 9e3), (5, 1e5), (900, 1e6)],
)
def test_negative_binomial_crps_is_the_sum(mean, size):
    law = stats.nbinom(size, size / (size + mean))
    for x in (0.0, 1.0, 4.0, 70.0):
        found = crps_negative_binomial(tensor(x), tensor(mean), tensor(size)).item()
        assert found == pytest.approx(summed(law, x), rel=2e-7)


def test_normal_crps_agrees_with_properscoring(device):
    """properscoring.crps_gaussian (Gneiting et al., 2005, equation 5) and crps_ensemble.

    Values of ``crps_gaussian([-1, 0, 2.5], [0, .5, 1], [1, 2, .25])`` of version 0.1, and of
    ``crps_ensemble(0.5, [0, 1, 3, -2])``, whose divisor is S^2 instead of S (S - 1).
    """
    x = torch.tensor([-1.0, 0.0, 2.5], dtype=torch.float64, device=device)
    mean = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, device=device)
    scale = torch.tensor([1.0, 2.0, 0.25], dtype=torch.float64, device=device)
    expected = [0.6024413576276163, 0.5169996257988081, 1.3589526041912392]
    assert crps_normal(x, mean, scale).tolist() == pytest.approx(expected, rel=1e-10)
    samples = tensor(0, 1, 3, -2)
    biased = (samples - 0.5).abs().mean() - (samples[:, None] - samples).abs().mean() / 2
    assert biased.item() == pytest.approx(0.5, rel=1e-12)
    fair = fair_crps(samples, torch.tensor(0.5, dtype=torch.float64)).value
    pairs = (samples[:, None] - samples).abs().sum() / (4 * 3)
    assert fair.item() == pytest.approx(((samples - 0.5).abs().mean() - pairs / 2).item())


def test_fair_estimate_is_the_double_loop():
    samples, x = torch.randn(7, 3, dtype=torch.float64) + 1e6, tensor(1e6, 1e6 + 1, 1e6 - 2)
    found = fair_crps(samples, x)
    for k in range(3):
        s = samples[:, k]
        apart = (s[:, None] - s).abs()
        expected = (s - x[k]).abs().mean() - apart.sum() / (2 * 7 * 6)
        assert found.value[k].item() == pytest.approx(expected.item(), rel=1e-8)
        influence = (s - x[k]).abs() - apart.sum(1) / 6
        assert found.influence[:, k] == pytest.approx(influence, rel=1e-8)


def test_fair_estimate_is_unbiased_and_its_error_is_right():
    """4000 estimates from 20 draws of N(0, 1) at x = .4, against the closed form."""
    samples = torch.randn(20, 4000, dtype=torch.float64)
    found = fair_crps(samples, torch.full((4000,), 0.4, dtype=torch.float64))
    exact = crps_normal(tensor(0.4), tensor(0.0), tensor(1.0)).item()
    error = found.value.std().item()
    assert found.value.mean().item() == pytest.approx(exact, abs=4 * error / 4000**0.5)
    claimed = found.influence.var(0).mean().sqrt().item() / 20**0.5
    assert claimed == pytest.approx(error, rel=0.1)


def no_likelihood(x):
    raise AssertionError("not asked for")


def posterior(x_obs, n_new, n_draws):
    """Normal location per feature, sd 1, flat prior: predictive N(mean, 1 + 1 / n)."""
    mean = x_obs.mean(0)

    def draw(at):
        law = Independent(Normal(at.expand(n_new, -1), 1.0), 1)
        return FunctionDraw(law.sample, lambda x: law)

    noise = torch.randn(n_draws, x_obs.shape[1], dtype=x_obs.dtype) / len(x_obs) ** 0.5
    return [draw(mean + one) for one in noise]


@pytest.fixture
def location():
    x_obs, x_new = torch.randn(10, 2, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    exact = Normal(x_obs.mean(0), (1 + 1 / 10) ** 0.5)
    return posterior(x_obs, 30, 2000), x_new, exact


def test_log_score_is_the_log_predictive_density(location):
    draws, x, exact = location
    score = log_score(draws, x)
    error = score.values - exact.log_prob(x).sum(1)
    assert (error.abs() < 5 * score.mc_error).all()
    # the errors are normal with the stated size: mean square 1, with the draws shared
    assert (error / score.mc_error).square().mean().item() < 4
    assert score.larger_is_better
    assert (score.name, score.n_draws) == ("log score", 2000)


def test_log_score_of_two_draws_by_hand():
    x = torch.tensor([[0.0], [1000.0]], dtype=torch.float64)
    laws = [Independent(Normal(torch.full((2, 1), m, dtype=torch.float64), 1.0), 1) for m in (0, 2)]
    draws = [FunctionDraw(law.sample, lambda x, law=law: law) for law in laws]
    score = log_score(iter(draws), x)
    density = [law.log_prob(x) for law in laws]
    average = density[0][0].logaddexp(density[1][0]).item() - math.log(2)
    assert score.values[0].item() == pytest.approx(average)
    assert score.values[1].item() == pytest.approx(-0.5 * 998**2 - 0.5 * math.log(8 * math.pi))
    w = torch.stack([d[0] for d in density]).exp()
    assert score.mc_error[0].item() == pytest.approx((w.std() / w.mean() / 2**0.5).item())
    assert score.mean == pytest.approx(score.values.mean().item())
    assert score.standard_error == pytest.approx(score.values.std().item() / 2**0.5)


def test_crps_from_draws_agrees_with_the_exact_predictive_distribution(location):
    draws, x, exact = location
    score = crps(draws, x, seed=1)
    expected = crps_normal(x, exact.loc, exact.scale).mean(1)
    assert ((score.values - expected).abs() < 5 * score.mc_error).all()
    assert not score.larger_is_better
    assert score.mc_error.max() < 0.04


def test_crps_in_blocks_of_features_is_the_same_estimate():
    """Replicates that do not depend on torch's generator: the blocks see the same ones."""
    samples = torch.randn(40, 6, 5, dtype=torch.float64)
    x = torch.randn(6, 5, dtype=torch.float64)
    draws = [FunctionDraw(lambda one=one: one, no_likelihood) for one in samples]
    whole, blocks = crps(draws, x), crps(iter(draws), x, stored=40 * 6 * 2)
    assert torch.equal(whole.values, blocks.values)
    assert torch.equal(whole.mc_error, blocks.mc_error)
    by_hand = fair_crps(samples, x).value.mean(1)
    assert whole.values == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "law",
    [
        Normal(tensor([0.0, 1.0]), tensor([1.0, 2.0])),
        Poisson(tensor([2.0, 3.0])),
        NegativeBinomial(tensor([2.0, 3.0]), probs=tensor([0.3, 0.6])),
    ],
    ids=["normal", "poisson", "negative binomial"],
)
def test_crps_of_one_draw_is_exact(law):
    x = tensor([1.0, 4.0])
    draw = FunctionDraw(law.sample, lambda x: Independent(law, 1))
    score = crps([draw], x)
    assert score.values.item() == pytest.approx(crps_of(law, x).mean().item(), rel=1e-12)
    samples = law.sample((40000,))
    fair = fair_crps(samples, x)
    error = fair.influence.std(0) / 200
    assert ((fair.value - crps_of(law, x)).abs() < 5 * error).all()


def test_coverage_of_a_correct_model_is_nominal_for_counts_and_few_draws():
    """Every count is exchangeable with its 9 replicates: coverage is exact at any S."""
    rate = torch.rand(4000, 3, dtype=torch.float64) * 3
    law = Independent(Poisson(rate), 1)
    draws = [FunctionDraw(law.sample, lambda x: law) for _ in range(9)]
    found = coverage(draws, torch.poisson(rate), seed=2)
    assert found.levels.tolist() == [0.5, 0.8, 0.9, 0.95]
    assert ((found.observed - found.levels).abs() < 4 * found.binomial_error).all()
    assert found.standard_error == pytest.approx(found.binomial_error, rel=0.1)
    assert found.values.shape == (4, 4000)
    assert stats.kstest(found.pit.flatten().numpy(), "uniform").pvalue > 1e-3


def test_coverage_by_hand():
    """Ranks 0 and 2 of 3 replicates, no ties: PIT in (0, 1/4) and (2/4, 3/4)."""
    replicates = [torch.tensor([[v, v]]) for v in (1.0, 2.0, 3.0)]
    draws = [FunctionDraw(lambda r=r: r, no_likelihood) for r in replicates]
    found = coverage(draws, torch.tensor([[0.0, 2.5]]), levels=[0.5])
    assert 0 <= found.pit[0, 0] < 0.25
    assert 0.5 <= found.pit[0, 1] < 0.75
    assert found.observed.item() == 0.5
    assert found.binomial_error.item() == pytest.approx((0.25 / 2) ** 0.5)


def test_too_narrow_intervals_are_seen(location):
    draws, x, _ = location
    found = coverage(draws, 3 * x)
    assert (found.observed < found.levels - 3 * found.binomial_error).all()


def score(values, name="log score", larger=True):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Score(name, values, larger, torch.full_like(values, 0.1), 10)


def test_paired_differences_by_hand():
    found = compare_scores({"a": score([1, 2, 3, 4.0]), "b": score([2, 2, 5, 5.0])})
    best, other = found.rows
    assert (best.name, best.difference, best.z) == ("b", 0.0, 0.0)
    difference = np.array([-1, 0, -2, -1.0])
    assert other.difference == pytest.approx(-1.0)
    assert other.difference_error == pytest.approx(difference.std(ddof=1) / 2)
    assert other.z == pytest.approx(-1.0 / (difference.std(ddof=1) / 2))
    assert best.standard_error == pytest.approx(np.std([2, 2, 5, 5], ddof=1) / 2)
    assert found.differences.tolist() == [[0.0] * 4, difference.tolist()]
    assert (found.n_clusters, best.mc_error) == (4, pytest.approx(0.1))
    assert found.statement == (
        "b has the best log score, 3.5 per unit; a is clearly worse, by 1 +- 0.41 (z = -2.4)."
    )


def test_clustered_error_is_that_of_the_cluster_sums():
    """Two equal units per cluster: the error of as many units as there are clusters."""
    values = torch.randn(20, dtype=torch.float64)
    twice, zero = values.repeat_interleave(2), torch.zeros(40)
    groups = [f"g{i // 2}" for i in range(40)]
    found = compare_scores(
        {"a": score(twice, larger=False), "b": score(zero, larger=False)}, groups=groups
    )
    assert found.rows[1].difference_error == pytest.approx(values.std().item() / 20**0.5)
    assert found.n_clusters == 20
    assert found.rows[0].name == ("a" if values.mean() < 0 else "b")


def test_equal_models_are_not_told_apart():
    found = compare_scores({"a": score([1.0, 2.0]), "b": score([1.0, 2.0])})
    assert [row.z for row in found.rows] == [0.0, 0.0]
    assert "not clearly worse, by 0 +- 0" in found.statement
    constant = compare_scores({"a": score([1.0, 2.0]), "b": score([0.0, 1.0])})
    assert constant.rows[1].z == -math.inf


def test_scores_prefer_the_truth():
    """Negative binomial counts: the gamma-mixed Poisson draws beat a single Poisson."""
    x = torch.poisson(Gamma(1.0, 0.5).sample((400, 1)))
    rates = Gamma(1.0, 0.5).sample((300, 400, 1))

    def draw(rate):
        law = Independent(Poisson(rate), 1)
        return FunctionDraw(law.sample, lambda x: law)

    models = {"mixed": [draw(r) for r in rates], "fixed": [draw(torch.full((400, 1), 2.0))] * 300}
    for rule in (log_score, crps):
        found = compare_scores({name: rule(draws, x) for name, draws in models.items()})
        assert found.rows[0].name == "mixed"
        assert abs(found.rows[1].z) > 3


class Labelled(list):
    local = "prior"
    scoring = "inferred"


def one_draw(x_rep=None):
    law = Independent(Normal(torch.zeros(2, 1), 1.0), 1)
    return FunctionDraw(law.sample if x_rep is None else lambda: x_rep, lambda x: law)


X = torch.zeros(2, 1)
POSTERIOR = Labelled()
POSTERIOR.local = "posterior"
BAD = {
    "nan data": (lambda: coverage([one_draw()] * 3, X / 0), "the data have 2 NaN or infinite"),
    "nan data, crps": (lambda: crps([one_draw()] * 3, X / 0), "the data have 2 NaN or infinite"),
    "nan data, log": (lambda: log_score([one_draw()], X / 0), "the data have 2 NaN or infinite"),
    "no event": (
        lambda: log_score([FunctionDraw(X.clone, lambda x: Normal(X, 1.0))], X),
        r"one log density per unit, shape \(2,\), got \(2, 1\)",
    ),
    "posterior in a list": (
        lambda: coverage([FunctionDraw(X.clone, lambda x: None, "posterior")], X),
        "local='posterior'.*no prediction",
    ),
    "inferred": (
        lambda: log_score(Labelled([one_draw()]), X),
        "no predictive density; use scoring",
    ),
    "inferred, one": (lambda: crps(Labelled([one_draw()]), X), "no predictive density"),
    "posterior": (lambda: crps(POSTERIOR, X), "local='posterior'.*no prediction"),
    "posterior intervals": (lambda: coverage(POSTERIOR, X), "local='posterior'.*no prediction"),
    "nothing": (lambda: log_score([], X), "draws is empty"),
    "nothing to replicate": (lambda: crps([], X), "draws is empty"),
    "nothing to count": (lambda: coverage([], X), "draws is empty"),
    "shape": (lambda: coverage([one_draw(X[:1])], X), r"shape of the data, \(2, 1\), got \(1, 1\)"),
    "nan": (lambda: crps([one_draw(X / 0)] * 2, X), "a replicate is NaN"),
    "level": (lambda: coverage([one_draw()], X, levels=[1.0]), r"levels must lie in \(0, 1\)"),
    "one law": (
        lambda: crps([FunctionDraw(X.clone, lambda x: Independent(Gamma(X + 1, X + 1), 1))], X),
        "not for Gamma; pass at least two draws",
    ),
    "one model": (lambda: compare_scores({"a": score([1, 2])}), "at least 2 models, got 1"),
    "two scores": (
        lambda: compare_scores({"a": score([1, 2]), "b": score([1, 2], name="CRPS")}),
        "different scores: CRPS, log score",
    ),
    "units": (
        lambda: compare_scores({"a": score([1, 2]), "b": score([1, 2, 3])}),
        r"same units, got numbers of units \{'a': 2, 'b': 3\}",
    ),
    "one group": (
        lambda: compare_scores({"a": score([1, 2]), "b": score([1, 2])}, groups=["g", "g"]),
        "at least 2 groups, got 1",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_draws_must_have_their_methods():
    with pytest.raises(TypeError, match=r"draw 0 is a int"):
        log_score([3], X)


def test_half_precision_counts_all_replicates():
    """Half floats cannot count beyond 2048, those with 8 bits of mantissa not beyond 256."""
    low, x = one_draw(torch.full((2, 1), -1.0, dtype=torch.bfloat16)), X.bfloat16()
    pit = coverage([low] * 999, x).pit
    assert (pit >= 0.999).all()


def test_infinite_scores_are_compared_in_words():
    impossible = score([1.0, -math.inf])
    found = compare_scores({"a": score([1.0, 2.0]), "b": impossible, "c": impossible})
    assert found.statement.endswith("b is infinitely worse; c is infinitely worse.")
    assert [row.z for row in found.rows] == [0, -math.inf, -math.inf]
    both = compare_scores({"a": impossible, "b": impossible})
    assert both.statement.endswith("b cannot be told apart, its score is infinite too.")
