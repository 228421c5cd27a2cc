"""The null check on numbers computed by hand, on other software, and on the published example."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from probinterp.criticism import FunctionDraw, NullCandidate, posterior_predictive_null
from probinterp.criticism.discrepancies import mean_negative_log_likelihood
from probinterp.criticism.discrepancies.mixtures import (
    likelihood_ratio_statistic,
    mean_negative_complete_log_likelihood,
)
from probinterp.criticism.divergence import kolmogorov_smirnov, symmetrised_kl
from probinterp.criticism.null_result import NullCheckResult
from probinterp.models import MixtureDraws, MultinomialMixture
from probinterp.models.mixtures import MixtureDraw, MultinomialMixtureParameters

FOLDER = Path(__file__).parents[2] / "benchmarks" / "calibration"
sys.path.insert(0, str(FOLDER))
study = importlib.import_module("null_check")
sys.path.remove(str(FOLDER))

SHIFT = torch.arange(100, dtype=torch.float64) / 100
ANY = FunctionDraw(lambda: torch.zeros(1, 1), lambda x: None)


def at(location):
    """A reference that stands for a number."""
    law = Independent(Normal(torch.full((1, 1), location, dtype=torch.float64), 1.0), 1)
    return FunctionDraw(law.sample, lambda x: law)


def distance(x, draw):
    return (x - draw.likelihood(x).mean).abs().mean()


def replicates(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


def small():
    """A replicates 1..4, B 2..5; A measures the distance from 0, B that from 3."""
    candidates = {
        "A": NullCandidate(replicates(1, 2, 3, 4), distance, at(0.0)),
        "B": NullCandidate(replicates(2, 3, 4, 5), distance, at(3.0)),
    }
    return posterior_predictive_null(candidates, torch.tensor([[2.5]], dtype=torch.float64))


def test_values_computed_by_hand():
    result = small()
    assert result.models == ("A", "B")
    assert result.discrepancy.tolist() == [
        [[1, 2, 3, 4], [2, 3, 4, 5]],  # A judges the replicates of A, of B
        [[2, 1, 0, 1], [1, 0, 1, 2]],
    ]
    assert result.heldout.tolist() == [2.5, 0.5]
    assert result.p_value.tolist() == [0.5, 0.25]
    assert result.mc_error.tolist() == [0.25, pytest.approx(math.sqrt(0.25 * 0.75 / 4))]
    assert result.p_two_sided.tolist() == [1.0, 0.8]  # 2 (1 + 1) / 5 at the smaller side
    assert result.ks[0, 1].item() == pytest.approx(0.25)
    assert result.ks[1, 0].item() == 0
    assert result.ks[0, 0].isnan()
    # at 2, 3 and 4 the distance is reached as well as at 1; the error is largest at 2 and at 3
    assert result.ks_error[0, 1].item() == pytest.approx(math.sqrt((0.25 + 0.1875) / 4))
    # three values are shared, the smallest and the largest have a bin of their own
    ends = math.log2(0.25 / 1e-5) * 0.25
    assert result.kl[0, 1].item() == pytest.approx(ends)
    assert result.kl[1, 0].item() == 0


def test_acceptance_counts_rank_p_values():
    result = NullCheckResult(
        ("A", "B"),
        torch.stack([torch.randn(2, 60), torch.randn(2, 60)]).double().round(decimals=1),
        torch.zeros(2, dtype=torch.float64),
    )
    for b, a in ((0, 1), (1, 0)):
        own, other = result.discrepancy[b, b], result.discrepancy[b, a]
        accepted = 0
        for value in other:
            tails = (own >= value).sum() + 1, (own <= value).sum() + 1
            accepted += 2 * min(tails) / 61 > 0.1
        assert result.acceptance(0.1)[b, a].item() == accepted / 60


def test_a_check_accepts_its_own_model_at_its_level():
    own, other = torch.randn(2, 4000, dtype=torch.float64)
    values = torch.stack([torch.stack([own, other]), torch.stack([own, other])])
    result = NullCheckResult(("A", "B"), values, torch.zeros(2))
    assert result.acceptance(0.2)[0, 1].item() == pytest.approx(0.8, abs=0.03)


def test_equal_width_bins_and_the_historical_ones():
    assert symmetrised_kl(SHIFT, SHIFT**2) == pytest.approx(0.3753, abs=1e-4)
    assert study.historical_kl(SHIFT, SHIFT**2) == pytest.approx(0.4288, abs=1e-4)


def test_divergence_agrees_with_scipy_where_no_bin_is_empty():
    first, second = torch.rand(2, 5000, dtype=torch.float64)
    limits = (min(first.min(), second.min()).item(), max(first.max(), second.max()).item())
    p, q = (np.histogram(v.numpy(), 50, limits)[0] / 5000 for v in (first, second))
    assert min(p.min(), q.min()) > 0
    expected = (stats.entropy(p, q, base=2) + stats.entropy(q, p, base=2)) / 2
    assert symmetrised_kl(first, second) == pytest.approx(expected, rel=1e-12)
    assert symmetrised_kl(second, first) == pytest.approx(expected, rel=1e-12)


def test_disjoint_samples_show_their_widths():
    """Two points of mass one: log2(1e5) bits; spread over 4 bins each: 2 bits less."""
    assert symmetrised_kl(torch.zeros(9), torch.ones(9)) == pytest.approx(math.log2(1e5))
    low, high = torch.arange(4.0), 46 + torch.arange(4.0)
    assert symmetrised_kl(low, high) == pytest.approx(math.log2(1e5) - 2)
    assert symmetrised_kl(torch.ones(3), torch.ones(5)) == 0


def test_distance_agrees_with_scipy():
    first, second = torch.randn(70).round(decimals=1), 0.3 + torch.randn(50).round(decimals=1)
    expected = stats.ks_2samp(first.numpy(), second.numpy()).statistic
    assert kolmogorov_smirnov(first, second).value == pytest.approx(expected)


def test_error_of_the_distance_is_its_spread_over_repetitions():
    found = [kolmogorov_smirnov(torch.randn(200), 1 + torch.randn(200)) for _ in range(400)]
    spread = np.std([d.value for d in found], ddof=1)
    assert np.mean([d.error for d in found]) == pytest.approx(spread, rel=0.12)


def test_noise_floor_of_the_documentation():
    low, middle, high = study.noise_floor(200)
    assert (low, middle, high) == pytest.approx((0.39, 0.58, 0.86), abs=0.02)


def test_several_references_are_averaged():
    candidates = {
        "A": NullCandidate(replicates(1, 4), distance, [at(0.0), at(3.0)]),
        "B": NullCandidate(replicates(2, 5), distance, at(0.0)),
    }
    result = posterior_predictive_null(candidates, torch.tensor([[6.0]], dtype=torch.float64))
    assert result.discrepancy[0].tolist() == [[1.5, 2.5], [1.5, 3.5]]
    assert result.heldout.tolist() == [4.5, 6.0]


def test_the_seed_decides_and_leaves_the_generator_alone(device):
    law = Independent(Normal(torch.zeros(5, 2, device=device), 1.0), 1)
    draw, reference = (FunctionDraw(law.sample, lambda x: law) for _ in range(2))
    candidate = NullCandidate([draw] * 20, mean_negative_log_likelihood, reference)
    candidates = {"A": candidate, "B": candidate}
    state = torch.random.get_rng_state()
    results = [posterior_predictive_null(candidates, law.mean, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (r.discrepancy for r in results)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first[0, 0].unique()) == 20
    assert first.device.type == "cpu"


def test_sentence_and_verdict():
    own = torch.linspace(0, 1, 99, dtype=torch.float64)
    values = torch.stack(
        [
            torch.stack([own, own, own + 2]),
            torch.stack([own, own, own]),
            torch.stack([own + 5, own, own]),
        ]
    )
    result = NullCheckResult(("A", "B", "C"), values, torch.tensor([0.5, 0.25, 0.75]).double())
    assert result.sentence("A", "C") == (
        "A fails the check of C: at level 0.05 it accepts 0% of the replicates of A "
        "(KS distance 1.00, s.e. 0.00; 13.49 bits)."
    )
    assert result.preferred() == "B"  # A does not imitate C
    assert result.verdict() == (
        "Held-out check of each model against itself: A passes (two-sided p = 1), B passes "
        "(two-sided p = 0.52), C passes (two-sided p = 0.52). B is the simplest that passes it "
        "and the checks of the richer ones that do. B passes the check of C: at level 0.05 it "
        "accepts 98% of the replicates of B (KS distance 0.00, s.e. 0.07; 0.00 bits)."
    )
    wrong = NullCheckResult(("A", "B", "C"), values, torch.tensor([9.0, 9.0, 9.0]).double())
    assert wrong.preferred() is None
    assert wrong.verdict().endswith("No model can be preferred.")
    alone = NullCheckResult(("A", "B", "C"), values, torch.tensor([0.5, 9.0, 9.0]).double())
    assert alone.preferred() == "A"  # nobody else is sound


def regression_candidates(slopes, n=2000, n_replicates=200):
    """Intercept only against all ten covariates, flat priors, unit noise, exact posteriors."""
    sets = []
    for _ in range(3):
        covariates = torch.randn(n, 10, dtype=torch.float64)
        y = 2.5 + covariates @ slopes + torch.randn(n, dtype=torch.float64)
        sets.append((torch.cat([torch.ones(n, 1), covariates], 1), y))
    (x_train, y_train), (x_test, y_test), (x_val, y_val) = sets

    def draw(columns, coefficients):
        """A draw for the validation covariates."""
        law = Normal((x_val[:, :columns] @ coefficients).unsqueeze(1), 1.0)
        return FunctionDraw(Independent(law, 1).sample, lambda x: Independent(law, 1))

    def posterior(x, y):
        factor = torch.linalg.cholesky(x.mT @ x)
        mean = torch.cholesky_solve((x.mT @ y).unsqueeze(1), factor)
        noise = torch.linalg.solve_triangular(
            factor.mT, torch.randn(len(mean), n_replicates, dtype=x.dtype), upper=True
        )
        return mean.squeeze(1), (mean + noise).mT

    candidates = {}
    for name, columns in (("intercept", 1), ("all", 11)):
        samples = posterior(x_train[:, :columns], y_train)[1]
        reference = draw(columns, posterior(x_test[:, :columns], y_test)[0])
        draws = [draw(columns, sample) for sample in samples]
        candidates[name] = NullCandidate(draws, mean_negative_log_likelihood, reference)
    return candidates, y_val.unsqueeze(1)


def test_regression_the_intercept_imitates_useless_covariates():
    result = posterior_predictive_null(*regression_candidates(torch.zeros(10).double()))
    assert result.acceptance()[1, 0].item() > 0.85
    assert result.ks[1, 0].item() < 0.25
    assert result.preferred() == "intercept"


def test_regression_the_intercept_does_not_imitate_useful_ones():
    result = posterior_predictive_null(*regression_candidates(torch.full((10,), 0.4).double()))
    assert result.acceptance()[1, 0].item() < 0.05
    assert result.ks[1, 0].item() > 0.95
    assert result.p_value[0].item() < 0.01  # the intercept fails its own check
    assert result.preferred() == "all"


def test_multinomial_one_class_does_not_imitate_two():
    probabilities = torch.tensor([[[0.9, 0.1]] * 4, [[0.1, 0.9]] * 4], dtype=torch.float64)
    truth = MultinomialMixtureParameters(torch.full((2,), 0.5).double(), probabilities)
    train, test, val = (MixtureDraw(truth, 150).replicate() for _ in range(3))
    candidates = {}
    for k in (1, 2, 3):
        mixture = MultinomialMixture(k, (2,) * 4)
        draws = MixtureDraws(mixture.gibbs(train, n_draws=100), 150)
        reference = MixtureDraw(mixture.em(test), 150)
        candidates[f"K={k}"] = NullCandidate(draws, likelihood_ratio_statistic, reference)
    result = posterior_predictive_null(candidates, val)
    assert result.acceptance()[1, 0].item() < 0.05
    assert result.acceptance()[2, 1].item() > 0.8
    assert result.preferred() == "K=2"
    assert result.notes == ()


def test_point_estimates_are_noted():
    law = Normal(torch.zeros(2, 1), 1.0)
    reference = FunctionDraw(law.sample, lambda x: Independent(law, 1))
    estimated = MixtureDraws([study.TRUTH], 2, n_draws=60)

    def statistic(x, draw):
        return x.mean()

    candidates = {
        "M": NullCandidate(estimated, statistic, reference),
        "L": NullCandidate([MixtureDraw(study.TRUTH, 2)] * 60, statistic, reference),
    }
    result = posterior_predictive_null(candidates, torch.zeros(2, 2))
    assert result.notes[0].startswith("Global parameters of M are point estimates")
    assert result.verdict().endswith(result.notes[0])


def test_complete_data_likelihood_adds_the_entropy_of_the_labels():
    law = MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7]).double().expand(2, -1)),
        Independent(Normal(torch.tensor([[[0.0], [2.0]]] * 2).double(), 1.0), 1),
    )
    x = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    draw = FunctionDraw(law.sample, lambda data: law)
    joint = np.log([0.3, 0.7]) + stats.norm.logpdf([[0.5], [1.5]], [0, 2])
    shares = np.exp(joint) / np.exp(joint).sum(1, keepdims=True)
    value = mean_negative_complete_log_likelihood(x, draw).item()
    assert value == pytest.approx(-(shares * joint).sum(1).mean())
    entropy = -(shares * np.log(shares)).sum(1).mean()
    assert value == pytest.approx(mean_negative_log_likelihood(x, draw).item() + entropy)


def test_complete_data_likelihood_bears_a_weight_of_zero():
    law = MixtureSameFamily(
        Categorical(torch.tensor([[1.0, 0.0]]), validate_args=False),
        Independent(Normal(torch.zeros(1, 2, 1), 1.0), 1),
    )
    draw = FunctionDraw(law.sample, lambda data: law)
    value = mean_negative_complete_log_likelihood(torch.zeros(1, 1), draw).item()
    assert value == pytest.approx(0.5 * math.log(2 * math.pi), abs=1e-5)
    with pytest.raises(TypeError, match="MixtureSameFamily likelihood, got Independent"):
        mean_negative_complete_log_likelihood(torch.zeros(1, 1), at(0.0))


def test_likelihood_ratio_agrees_with_scipy():
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    law = Independent(Categorical(probabilities.expand(1, 1, 3)), 1)
    x = torch.tensor([[0.0]] * 7 + [[1.0]] * 2 + [[2.0]] * 1, dtype=torch.float64)
    value = likelihood_ratio_statistic(x, FunctionDraw(law.sample, lambda data: law))
    expected = stats.power_divergence([7, 2, 1], [5, 3, 2], lambda_="log-likelihood").statistic
    assert value.item() == pytest.approx(expected)


GOOD = NullCandidate(replicates(1, 2), distance, at(0.0))
VAL = torch.zeros(1, 1, dtype=torch.float64)
SHARED = at(0.0)
ERRORS = {
    "one model": ({"A": GOOD}, VAL, ValueError, "at least two models, got 1"),
    "no candidate": ({"A": GOOD, "B": 3}, VAL, TypeError, "got int for 'B'"),
    "integers": ({"A": GOOD, "B": GOOD}, VAL.long(), ValueError, "floating point"),
    "shape of val": ({"A": GOOD, "B": GOOD}, VAL[0], ValueError, r"shape \(N, G\)"),
    "shape": (
        {"A": GOOD, "B": GOOD},
        torch.zeros(2, 1),
        ValueError,
        r"shape of x_val, \(2, 1\), got \(1, 1\) in draw 0 of 'A'",
    ),
    "numbers": (
        {"A": GOOD, "B": NullCandidate(replicates(1), distance, at(0.0))},
        VAL,
        ValueError,
        "same number of replicates, got {'A': 2, 'B': 1}",
    ),
    "none": (
        {"A": GOOD, "B": NullCandidate([], distance, at(0.0))},
        VAL,
        ValueError,
        "'B' has no draws",
    ),
    "reference replicates": (
        {"A": GOOD, "B": NullCandidate([SHARED], distance, SHARED)},
        VAL,
        ValueError,
        "draw 0 of 'B' is also its reference",
    ),
    "no reference": (
        {"A": GOOD, "B": NullCandidate(replicates(1, 2), distance, [])},
        VAL,
        TypeError,
        "the reference of 'B' must be a draw or draws",
    ),
    "vector": (
        {"A": GOOD, "B": NullCandidate(replicates(1, 2), lambda x, draw: x.mean(0), ANY)},
        VAL,
        ValueError,
        r"discrepancy of 'B' must return a scalar, got shape \(1,\)",
    ),
    "number": (
        {"A": GOOD, "B": NullCandidate(replicates(1, 2), lambda x, draw: 1.0, ANY)},
        VAL,
        TypeError,
        "discrepancy of 'B' must return a torch.Tensor, got float",
    ),
    "infinite": (
        {"A": GOOD, "B": NullCandidate(replicates(1, 2), lambda x, draw: 1 / x.sum() / 0, ANY)},
        VAL,
        ValueError,
        "discrepancy of 'B' is NaN or infinite on 5 of 5 data sets",
    ),
}


@pytest.mark.parametrize(("candidates", "x_val", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected(candidates, x_val, error, message):
    with pytest.raises(error, match=message):
        posterior_predictive_null(candidates, x_val)


def test_errors_of_the_result():
    result = small()
    with pytest.raises(ValueError, match=r"between 0.4 \(the resolution of 4 replicates\)"):
        result.acceptance()
    with pytest.raises(KeyError, match="no model 'C'; models: A, B"):
        result.sentence("C", "A")
    with pytest.raises(ValueError, match="compares two models, got 'A' twice"):
        result.sentence("A", "A")
    with pytest.raises(ValueError, match="finite and not empty"):
        symmetrised_kl(torch.tensor([1.0, math.inf]), torch.ones(2))
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        symmetrised_kl(torch.ones(2), torch.ones(2), 0)


@pytest.mark.slow
def test_published_pattern_of_gaussian_mixtures():
    """Disjoint, disjoint, and the noise of 200 replicates: 13.54, 14.08 and .504 bits.

    The third number is one draw from the noise: it must lie where single data sets do.
    """
    found = study.values([study.check("EM", 200, seed) for seed in range(20)])
    floor = study.noise_floor(200)
    for name in ("kl", "historical"):
        medians = np.median(found[name], 0)
        assert medians[:2] == pytest.approx(study.PUBLISHED["EM"][:2], rel=0.15)
        assert floor[0] < medians[2] < floor[2]
        low, high = np.quantile(found[name][:, 2], [0.05, 0.95])
        assert low < study.PUBLISHED["EM"][2] < high
    assert np.median(found["accepted"], 0)[:2].tolist() == [0, 0]
    assert np.median(found["accepted"], 0)[2] > 0.85


def test_latents_inferred_from_the_validation_data_are_noted():
    law = Independent(Normal(torch.zeros(2, 1), 1.0), 1)
    draws = [FunctionDraw(law.sample, lambda x: law, "posterior") for _ in range(60)]
    reference = FunctionDraw(law.sample, lambda x: law)
    candidates = {name: NullCandidate(draws, lambda x, d: x.mean(), reference) for name in "AB"}
    notes = posterior_predictive_null(candidates, torch.zeros(2, 1)).notes
    assert len(notes) == 1
    assert notes[0].startswith("Local latents of the replicates of A, B were inferred from the")
