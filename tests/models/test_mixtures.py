"""Mixtures against closed forms, exact enumeration, quadrature and scikit-learn."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import gammaln
from sklearn.mixture import GaussianMixture as PeerMixture

from probinterp.criticism import PredictiveDraw
from probinterp.models import GaussianMixture, MixtureDraws, MultinomialMixture
from probinterp.models.mixtures import (
    GaussianMixtureParameters,
    MixtureDraw,
    MultinomialMixtureParameters,
)

LEVELS = (4, 3, 2)
THREE = GaussianMixtureParameters(
    torch.full((3,), 1 / 3, dtype=torch.float64),
    torch.tensor([[-5.0, 5.0], [0.0, 0.0], [10.0, 5.0]], dtype=torch.float64),
    torch.tensor([[1.0, 1.0], [2.0, 1.0], [2.0, 4.0]], dtype=torch.float64),
)
CLASSES = MultinomialMixtureParameters(
    torch.tensor([0.6, 0.4], dtype=torch.float64),
    torch.tensor(
        [
            [[0.7, 0.1, 0.1, 0.1], [0.8, 0.1, 0.1, 0.0], [0.9, 0.1, 0.0, 0.0]],
            [[0.1, 0.1, 0.1, 0.7], [0.1, 0.1, 0.8, 0.0], [0.2, 0.8, 0.0, 0.0]],
        ],
        dtype=torch.float64,
    ),
)
SMALL = GaussianMixture(2, mean_scale=3, shape=2, rate=1.5)
MODELS = {
    "Gaussian": (lambda k, **o: GaussianMixture(k, **o), THREE),
    "multinomial": (lambda k, **o: MultinomialMixture(k, LEVELS, **o), CLASSES),
}
TINY = {
    "Gaussian": (SMALL, [[-2.0, -1.2, 0.1, 1.0, 2.5], [3.0, -0.5, 2.8, -0.4, 0.2]]),
    "multinomial": (MultinomialMixture(2, (4,)), [[0.0, 0.0, 3.0, 3.0, 1.0], [2.0] * 4 + [0.0]]),
}


@pytest.fixture(params=MODELS)
def case(request, device):
    """A constructor and data for it."""
    make, truth = MODELS[request.param]
    return make, MixtureDraw(truth, 300).replicate().to(device)


def flat(n_components):
    return GaussianMixture(n_components, mean_scale=math.inf, shape=-1, rate=0)


def with_each_label(parameters, x):
    """Log density of units (..., N, G) together with each label, (..., N, K)."""
    units = x.movedim(-2, 0).unsqueeze(-2)
    return (parameters.weights.log() + parameters.components.log_prob(units)).movedim(0, -2)


def same_component(draws, x):
    """Posterior probability that each pair of units has the same label, (..., N, N)."""
    total = 0
    for parameters in draws:
        shares = with_each_label(parameters, x).softmax(-1)
        total = total + shares @ shares.mT
    return (total / len(draws)).numpy()


def enumerate_pairs(n, n_components, concentration, log_marginal):
    """The same from all K^N labellings, with weights and component unknowns integrated out."""
    log_mass, together = [], []
    for labels in product(range(n_components), repeat=n):
        members = [np.flatnonzero(np.equal(labels, k)) for k in range(n_components)]
        counts = np.array([len(m) for m in members])
        log_mass.append(gammaln(concentration + counts).sum() + sum(map(log_marginal, members)))
        together.append(np.equal.outer(labels, labels))
    mass = np.exp(log_mass - np.max(log_mass))
    return np.tensordot(mass / mass.sum(), np.array(together, dtype=float), 1)


def gaussian_pairs(x):
    """Exact pairs of ``SMALL``."""

    @cache  # each set of members is seen with both labels
    def log_marginal_of(members):
        """Mean integrated out exactly, variance by quadrature."""
        if len(members) == 0:
            return 0.0
        y, ones = x[list(members)], np.ones((len(members), len(members)))

        def integrand(log_variance):
            covariance = np.exp(log_variance) * np.eye(len(y)) + 9 * ones
            prior = stats.invgamma.pdf(np.exp(log_variance), 2, scale=1.5)
            density = stats.multivariate_normal.pdf(y, np.zeros(len(y)), covariance)
            return density * prior * np.exp(log_variance)

        return math.log(integrate.quad(integrand, -8, 12, limit=200)[0])

    return enumerate_pairs(len(x), 2, 1.0, lambda members: log_marginal_of(tuple(members)))


def test_gaussian_chains_agree_with_all_labellings():
    """One chain of 3,000 draws; 400 of 25 draws side by side, every second on other data."""
    x = np.array(TINY["Gaussian"][1])
    expected = np.array([gaussian_pairs(row) for row in x])
    off = ~np.eye(5, dtype=bool)
    assert (np.ptp(expected[:, off], axis=1) > 0.3).all()  # the pairs do differ
    data = torch.as_tensor(x).unsqueeze(-1)
    alone = same_component(SMALL.gibbs(data[0], n_draws=3000, seed=1), data[0])
    assert alone[off] == pytest.approx(expected[0][off], abs=0.04)
    many = data.repeat(200, 1, 1)
    pairs = same_component(SMALL.gibbs(many, n_draws=25, thin=2, seed=2), many)
    observed = pairs.reshape(200, 2, 5, 5).mean(0)
    assert observed[:, off] == pytest.approx(expected[:, off], abs=0.02)


def prior_of_small(n_sets):
    """Unknowns of many data sets from the prior of ``SMALL``, and the laws of each."""
    laws = {
        "weights": stats.uniform(),
        "means": stats.norm(0, 3),
        "variances": stats.invgamma(2, scale=1.5),
    }
    share, means, variances = (
        torch.as_tensor(law.rvs((n_sets, 2, 1), random_state=k))
        for k, law in enumerate(laws.values())
    )
    weights = torch.stack([share[:, 0, 0], 1 - share[:, 0, 0]], -1)
    return SMALL, GaussianMixtureParameters(weights, means, variances), laws


def prior_of_classes(n_sets):
    """The same for two classes and two variables of three levels."""
    laws = {"weights": stats.beta(2, 2), "probabilities": stats.beta(2, 4)}
    weights = stats.dirichlet([2, 2]).rvs(n_sets, random_state=0)
    levels = stats.dirichlet([2, 2, 2]).rvs(n_sets * 4, random_state=1).reshape(n_sets, 2, 2, 3)
    truth = MultinomialMixtureParameters(torch.as_tensor(weights), torch.as_tensor(levels))
    return MultinomialMixture(2, (3, 3)), truth, laws


@pytest.mark.parametrize("from_prior", [prior_of_small, prior_of_classes])
def test_sweeps_leave_the_joint_distribution_invariant(from_prior):
    """Unknowns from the prior, data from them, five sweeps: the unknowns have their prior again.

    4,000 data sets; the Kolmogorov distance of a correct sampler exceeds .0352 once in 10,000.
    """
    mixture, truth, laws = from_prior(4000)
    label = torch.distributions.Categorical(truth.weights).sample((6,))[..., None, None]
    x = truth.components.sample((6,)).take_along_dim(label, 2).squeeze(2).double()
    (after,) = mixture.gibbs(x.movedim(0, 1), start=truth, n_draws=1, burn_in=4)
    for field, law in laws.items():
        first, last = (getattr(value, field).flatten(1)[:, 0] for value in (truth, after))
        assert abs(stats.pearsonr(first, last).statistic) < 0.98  # they did move
        assert stats.kstest(last, law.cdf).statistic < 0.0352, field


@pytest.mark.parametrize("name", TINY)
def test_chains_side_by_side_have_the_moments_of_each_alone(name, device):
    """Mean and variance of log densities; 100 chains of 20 draws against one of 1,500."""
    mixture, data = TINY[name]
    sets = torch.tensor(data, dtype=torch.float64, device=device).unsqueeze(-1)
    at = torch.tensor([0.0, 2.0], dtype=torch.float64, device=device).view(2, 1)

    def log_densities(draws, units):
        return torch.stack([with_each_label(draw, units).logsumexp(-1) for draw in draws])

    many = mixture.gibbs(sets.repeat(100, 1, 1), n_draws=20)
    together = log_densities(many, at.expand(200, 2, 1)).view(20, 100, 2, 2)
    for index, one in enumerate(sets):
        alone = log_densities(mixture.gibbs(one, n_draws=1500), at).view(30, 50, 2)
        center = alone.mean((0, 1))
        for power in (1, 2):  # draws of a chain resemble each other, chains and blocks do not
            first = (together[:, :, index] - center).pow(power).mean(0)
            second = (alone - center).pow(power).mean(1)
            se = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
            assert ((first.mean(0) - second.mean(0)).abs() < 4 * se).all()
            assert (se < 0.1).all()


def test_leading_dimensions_of_the_data_are_those_of_the_draws(case):
    make, x = case
    (draw,) = make(3).gibbs(x.view(5, 2, 30, -1), n_draws=1, burn_in=0)
    assert draw.weights.shape == (5, 2, 3)
    assert draw.components.batch_shape == (5, 2, 3)
    first, again = (make(3).gibbs(data, n_draws=1)[0].weights for data in (x, x.unsqueeze(0)))
    assert again[0].tolist() == pytest.approx(first.tolist())


def test_multinomial_chain_agrees_with_all_labellings():
    x = np.array([[0, 0, 1], [0, 0, 1], [3, 2, 0], [3, 1, 0], [1, 0, 1]])

    def log_marginal(members):
        total = 0.0
        for j, levels in enumerate(LEVELS):
            counts = np.bincount(x[members, j], minlength=levels)
            total += gammaln(2.0 + counts).sum() - gammaln(2.0 * levels + len(members))
        return total + sum(gammaln(2.0 * c) for c in LEVELS)

    expected = enumerate_pairs(5, 2, 2.0, log_marginal)
    data = torch.as_tensor(x, dtype=torch.float64)
    observed = same_component(MultinomialMixture(2, LEVELS).gibbs(data, n_draws=2500), data)
    off = ~np.eye(5, dtype=bool)
    assert np.ptp(expected[off]) > 0.2
    assert observed[off] == pytest.approx(expected[off], abs=0.03)


def test_weights_of_the_chain_follow_their_dirichlet():
    """Well separated components: the labels are known, the weights are Dirichlet(2 + counts)."""
    x = torch.cat([torch.full((30, 1), -50.0), torch.full((10, 1), 50.0)]).double()
    x += 0.1 * torch.randn_like(x)
    draws = GaussianMixture(2, concentration=2.0, mean_scale=100).gibbs(x, n_draws=1500)
    largest = torch.stack([d.weights[d.means[:, 0].argmin()] for d in draws])
    exact = stats.beta(32, 12)
    assert largest.mean().item() == pytest.approx(exact.mean(), abs=0.005)
    assert largest.std().item() == pytest.approx(exact.std(), rel=0.08)


def test_every_iteration_raises_the_objective(case):
    make, x = case
    mixture = make(4)
    fits = [mixture.em(x, n_restarts=1, max_iterations=n, tolerance=0) for n in range(1, 40)]
    objective = torch.stack([mixture.log_posterior(x, fit) for fit in fits]).cpu()
    steps = objective.diff()
    assert (steps >= -1e-9 * objective[1:].abs()).all()
    assert steps[:5].min() > 0
    assert objective[-1] - objective[0] > 5


def test_the_result_is_a_stationary_point(case):
    """In unconstrained coordinates the gradient of the log posterior vanishes."""
    make, x = case
    mixture = make(2, concentration=2.0)
    fit = mixture.em(x, tolerance=0, max_iterations=3000)
    logits = fit.weights.log().requires_grad_()
    if isinstance(fit, GaussianMixtureParameters):
        inner = (fit.means.clone().requires_grad_(), fit.variances.clone().requires_grad_())
        point = GaussianMixtureParameters(logits.softmax(0), *inner)
    else:
        inner = (fit.probabilities.log().requires_grad_(),)
        point = MultinomialMixtureParameters(logits.softmax(0), inner[0].softmax(-1))
    gradients = torch.autograd.grad(mixture.log_posterior(x, point), (logits, *inner))
    for gradient in gradients:
        assert gradient.nan_to_num().abs().max() < 1e-4 * len(x)


def test_flat_priors_give_the_fit_of_scikit_learn():
    x = MixtureDraw(THREE, 400).replicate()
    ours = flat(3).em(x, tolerance=1e-14, max_iterations=5000)
    peer = PeerMixture(
        3, covariance_type="diag", reg_covar=0, tol=1e-12, max_iter=5000, n_init=5, random_state=0
    ).fit(x.numpy())
    order = peer.weights_.argsort()[::-1]
    np.testing.assert_allclose(ours.weights, peer.weights_[order], rtol=1e-5)
    np.testing.assert_allclose(ours.means, peer.means_[order], atol=1e-4)
    np.testing.assert_allclose(ours.variances, peer.covariances_[order], rtol=1e-4)
    density = MixtureDraw(ours, 1).likelihood(x).log_prob(x)
    np.testing.assert_allclose(density, peer.score_samples(x.numpy()), rtol=1e-4, atol=1e-4)


def test_a_single_component_has_the_closed_form():
    x = torch.tensor([[0.0, 1.0, 0.0], [3.0, 1.0, 0.0], [3.0, 2.0, 0.0]], dtype=torch.float64)
    fit = MultinomialMixture(1, LEVELS).em(x)
    expected = [[2 / 7, 1 / 7, 1 / 7, 3 / 7], [1 / 6, 3 / 6, 2 / 6, 0], [4 / 5, 1 / 5, 0, 0]]
    assert fit.probabilities[0].tolist() == [pytest.approx(row) for row in expected]
    assert fit.weights.tolist() == [1.0]
    gaussian = flat(1).em(x[:, :1])
    assert gaussian.means.item() == pytest.approx(2.0)
    assert gaussian.variances.item() == pytest.approx(2.0)


def test_chain_and_mode_agree_on_well_separated_components():
    x = MixtureDraw(THREE, 1500).replicate()
    mixture = GaussianMixture(3)
    mode = mixture.em(x)
    rows = mode.means[:, 0].argsort()
    draws = mixture.gibbs(x, start=mode, n_draws=400, burn_in=20)
    means = torch.stack([d.means[d.means[:, 0].argsort()] for d in draws])
    standard_error = (mode.variances / (mode.weights.unsqueeze(1) * len(x))).sqrt()[rows]
    assert ((means.mean(0) - mode.means[rows]).abs() < 0.3 * standard_error).all()
    assert (means.std(0) / standard_error).flatten().tolist() == pytest.approx([1] * 6, abs=0.15)


def test_a_start_at_random_finds_the_components(case):
    make, x = case
    draws = make(2).gibbs(x, n_draws=20, burn_in=50)
    best = make(2).log_posterior(x, make(2).em(x))
    assert (best - make(2).log_posterior(x, draws[-1])).item() < 40


@pytest.mark.parametrize("method", ["em", "gibbs"])
def test_superfluous_components_do_no_harm(method, case):
    make, x = case
    few = x[:3]
    fit = getattr(make(6), method)(few)
    for parameters in [fit] if method == "em" else fit:
        draw = MixtureDraw(parameters, 50)
        assert draw.likelihood(few).log_prob(few).isfinite().all()
        assert draw.replicate().isfinite().all()
        assert parameters.weights.sum().item() == pytest.approx(1)


def test_an_empty_component_lies_at_the_mode_of_its_prior():
    x = torch.full((20, 2), 3.0, dtype=torch.float64)  # all units are alike: one component
    fit = GaussianMixture(2, shape=3.0, rate=8.0).em(x)
    assert fit.weights.tolist() == pytest.approx([1.0, 0.0])
    assert fit.means[1].tolist() == [0.0, 0.0]
    assert fit.variances[1].tolist() == pytest.approx([2.0, 2.0])
    # all data at the mean but for its shrinkage: variance (20 (3 - mu)^2 / 2 + 8) / (10 + 4)
    expected = (10 * (3 - fit.means[0, 0].item()) ** 2 + 8) / 14
    assert fit.variances[0].tolist() == pytest.approx([expected] * 2)


def test_components_come_in_decreasing_order_of_weight(case):
    make, x = case
    weights = make(3).em(x).weights
    assert (weights.diff() <= 0).all()


def test_a_collapse_under_a_flat_prior_is_an_error():
    x = torch.tensor([[0.0], [0.0], [5.0], [6.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="collapsed onto equal values"):
        flat(2).em(x)


def test_the_seed_decides_and_leaves_the_generator_alone(case):
    make, x = case
    state = torch.random.get_rng_state()
    first, again, other = (make(3).gibbs(x, n_draws=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[-1].weights, again[-1].weights)
    assert not torch.equal(first[-1].weights, other[-1].weights)


def test_thinning_keeps_every_third_sweep(case):
    make, x = case
    every = make(2).gibbs(x, n_draws=9, burn_in=4)
    third = make(2).gibbs(x, n_draws=3, burn_in=4, thin=3)
    assert [d.weights.tolist() for d in third] == [d.weights.tolist() for d in every[2::3]]


def test_single_precision_is_kept(device):
    x = MixtureDraw(THREE, 200).replicate().float().to(device)
    fit = GaussianMixture(3).em(x)
    assert fit.means.dtype == torch.float32
    assert MixtureDraw(fit, 7).replicate().dtype == torch.float32
    double = GaussianMixture(3).em(x.double())
    assert fit.means.double().cpu().flatten().tolist() == pytest.approx(
        double.means.cpu().flatten().tolist(), abs=1e-3
    )


def test_likelihood_sums_the_labels_out():
    x = MixtureDraw(THREE, 6).replicate()
    expected = sum(
        stats.multivariate_normal.pdf(x, m, np.diag(v)) / 3
        for m, v in zip(THREE.means, THREE.variances, strict=True)
    )
    law = MixtureDraw(THREE, 1).likelihood(x)
    assert (law.batch_shape, law.event_shape) == ((6,), (2,))
    np.testing.assert_allclose(law.log_prob(x), np.log(expected), rtol=1e-12)


def test_replicates_have_the_frequencies_of_the_mixture():
    x = MixtureDraw(CLASSES, 40_000).replicate()
    assert x.dtype == torch.float64
    cell = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    expected = 0.6 * 0.7 * 0.8 * 0.1 + 0.4 * 0.1 * 0.1 * 0.8
    density = MixtureDraw(CLASSES, 1).likelihood(cell.unsqueeze(0)).log_prob(cell.unsqueeze(0))
    assert density.exp().item() == pytest.approx(expected)
    share = (x == cell).all(1).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / 40_000))


def test_draws_say_what_they_are():
    single = MixtureDraws([THREE], 10, n_draws=7, n_obs=50)
    assert (len(single), len(list(single)), single.point_estimate) == (7, 7, True)
    assert (single.local, single.n_obs) == ("prior", 50)
    several = MixtureDraws([THREE, CLASSES], 10)
    assert [draw.parameters for draw in several] == [THREE, CLASSES]
    assert not several.point_estimate
    assert isinstance(next(iter(several)), PredictiveDraw)
    assert next(iter(several)).replicate().shape == (10, 2)


ERRORS = {
    "no components": (lambda: GaussianMixture(0), "n_components must be a positive integer"),
    "concentration": (lambda: GaussianMixture(1, concentration=0), "concentration must be pos"),
    "rate": (lambda: GaussianMixture(1, rate=-1), "rate at least 0"),
    "no variables": (lambda: MultinomialMixture(2, ()), "at least one variable"),
    "levels": (lambda: MultinomialMixture(2, (3, 0)), r"n_levels\[1\] must be a positive"),
    "level prior": (
        lambda: MultinomialMixture(2, (3,), level_concentration=0),
        "level_concentration must be positive",
    ),
    "no level mode": (
        lambda: MultinomialMixture(2, (3,), level_concentration=0.5).em(torch.zeros(2, 1)),
        "level_concentration below 1",
    ),
    "no mode": (
        lambda: GaussianMixture(2, concentration=0.5).em(torch.zeros(2, 1)),
        "concentration below 1",
    ),
    "improper": (lambda: flat(2).gibbs(torch.zeros(2, 1)), "needs proper priors"),
    "integers": (lambda: GaussianMixture(1).em(torch.zeros(2, 1).long()), "floating point"),
    "one dimension": (lambda: GaussianMixture(1).gibbs(torch.zeros(3)), r"of shape \(3,\)"),
    "no units in a set": (lambda: GaussianMixture(1).gibbs(torch.zeros(2, 0, 1)), "not empty"),
    "sets side by side": (lambda: GaussianMixture(1).em(torch.zeros(2, 3, 1)), r"shape \(N, G\)"),
    "missing": (lambda: GaussianMixture(1).em(torch.tensor([[math.nan]])), "1 NaN or infinite"),
    "codes": (
        lambda: MultinomialMixture(1, (2, 2)).em(torch.tensor([[0.0, 2.0]])),
        "variable 1 must hold codes 0 to 1",
    ),
    "variables": (
        lambda: MultinomialMixture(1, (2, 2)).em(torch.zeros(3, 1)),
        "x must have 2 variables",
    ),
    "burn-in": (lambda: GaussianMixture(1).gibbs(torch.zeros(2, 1), burn_in=-1), "burn_in"),
    "no parameters": (lambda: MixtureDraws([], 3), "at least one value"),
    "no units": (lambda: MixtureDraws([THREE], 0), "must be positive"),
}


@pytest.mark.parametrize(("action", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected(action, message):
    with pytest.raises(ValueError, match=message):
        action()
