"""Exact posteriors against closed forms, numerical integration and prior simulation."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import HalfNormal

from probinterp.criticism import PredictiveDraw, pop_pc
from probinterp.criticism.discrepancies import mean_negative_log_likelihood
from probinterp.models.exact import (
    BayesianPCA,
    LinearRegression,
    NormalInverseGamma,
    PoissonGamma,
    ProbabilisticPCA,
    TwoLevelGaussian,
)
from probinterp.models.exact.pca_chain import PCAChain, PCAPrior, State


def normal(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def mask_of(shape, n_masked, seed=4):
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(*shape[:-2], shape[-2] * shape[-1], generator=generator).argsort(-1)
    return (order < n_masked).view(shape)


def regression_draws(x, n_draws, seed, **options):
    design = normal(12, 3, seed=5).expand(*x.shape[:-1], 3)
    return LinearRegression(design, x, **options).draws(design[..., :7, :], n_draws, seed=seed)


MODELS = {  # name: (posterior draws of x (..., 12, 4), their local mode)
    "regression": (regression_draws, None),
    "regression, known noise": (
        lambda x, n, seed: regression_draws(x, n, seed, noise_scale=1.0),
        None,
    ),
    "regression, prior": (
        lambda x, n, seed: regression_draws(x, n, seed, prior=NormalInverseGamma(0.5)),
        None,
    ),
    "poisson": (
        lambda x, n, seed: PoissonGamma(x.abs().round()).draws(7, n, seed=seed),
        None,
    ),
    "groups, new": (
        lambda x, n, seed: TwoLevelGaussian(x, noise_scale=1.0).new_groups(7, 5, n, seed=seed),
        "prior",
    ),
    "groups, same": (
        lambda x, n, seed: TwoLevelGaussian(x, noise_scale=1.0).new_items(5, n, seed=seed),
        "observed",
    ),
    "pca, masked": (
        lambda x, n, seed: ProbabilisticPCA(normal(4, 2), 1.0).masked_cells(
            x, mask_of((12, 4), 9).expand_as(x), n, seed=seed
        ),
        "observed",
    ),
    "pca, same rows": (
        lambda x, n, seed: ProbabilisticPCA(normal(4, 2), 1.0).same_rows(x, n, seed=seed),
        "posterior",
    ),
    "bayesian pca, new": (
        lambda x, n, seed: BayesianPCA(x, 2).new_rows(7, n, burn_in=5, thin=1, seed=seed),
        "prior",
    ),
    "bayesian pca, masked": (
        lambda x, n, seed: BayesianPCA(x, 2, mask=mask_of((12, 4), 9).expand_as(x)).masked_cells(
            n, burn_in=5, thin=1, seed=seed
        ),
        "observed",
    ),
}
every_model = pytest.mark.parametrize(("make", "local"), MODELS.values(), ids=MODELS)


@every_model
@pytest.mark.filterwarnings("ignore::probinterp.criticism.LocalDoubleUseWarning")
def test_draws_are_what_a_check_asks_for(make, local, device):
    draws = make(normal(12, 4).to(device), 40, seed=0)
    assert len(draws) == 40
    assert all(isinstance(draw, PredictiveDraw) for draw in (draws.reference, *draws))
    x_new = draws.reference.replicate()
    for kind in ("plugin", "predictive"):
        result = pop_pc(draws, x_new, mean_negative_log_likelihood, kind=kind, seed=0)
        assert result.calibrated == (local != "posterior")
        assert result.local == local
        assert 0.02 < result.p_two_sided.item()


@every_model
def test_same_seed_same_unknowns_and_another_seed_others(make, local):
    first, again, other = (
        next(iter(make(normal(12, 4), 3, seed=seed))).law.mean for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    draws = make(normal(12, 4), 3, seed=0)
    assert torch.equal(next(iter(draws)).law.mean, next(iter(draws)).law.mean)


@pytest.mark.parametrize("name", [name for name in MODELS if "bayesian" not in name])
def test_data_sets_side_by_side_have_the_posteriors_of_each_alone(name):
    make, x = MODELS[name][0], normal(3, 12, 4)
    together = make(x, 2, seed=0)
    new = together.reference.replicate()
    for index in range(3):
        alone = make(x[index], 2, seed=0)
        for one, other in (
            (together.reference, alone.reference),
            *zip(together.reference_draws, alone.reference_draws, strict=True),
        ):
            density = one.likelihood(new).log_prob(new)[index]
            torch.testing.assert_close(density, other.law.log_prob(new[index]))


@pytest.mark.parametrize("noise_scale", [None, 0.7])
@pytest.mark.parametrize("prior", [None, NormalInverseGamma(0.5, shape=2.0, rate=3.0)])
def test_regression_posterior_has_the_closed_form_moments(noise_scale, prior):
    design, x = normal(30, 3), normal(30, 2, seed=6) + 1
    model = LinearRegression(design, x, noise_scale=noise_scale, prior=prior)
    h, y, precision = design.numpy(), x.numpy(), 0.0 if prior is None else 0.5
    gram = h.T @ h + precision * np.eye(3)
    mean = np.linalg.solve(gram, h.T @ y)
    if prior is None:
        assert mean == pytest.approx(np.linalg.lstsq(h, y, rcond=None)[0])
    draws = list(model.draws(torch.eye(3, dtype=torch.float64), 20_000))
    coefficients = torch.stack([draw.law.mean for draw in draws]).numpy()
    variances = torch.stack([draw.law.variance[0] for draw in draws]).numpy()
    squares = (y * (y - h @ mean)).sum(0)
    shape, rate = (13.5, squares / 2) if prior is None else (17.0, 3 + squares / 2)
    expected = rate / (shape - 1) if noise_scale is None else np.full(2, noise_scale**2)
    assert variances.mean(0) == pytest.approx(expected, rel=0.02)
    if noise_scale is None:
        for column in range(2):
            law = stats.invgamma(shape, scale=rate[column])
            assert stats.kstest(variances[:, column], law.cdf).pvalue > 1e-3
    for column in range(2):
        covariance = expected[column] * np.linalg.inv(gram)
        assert np.cov(coefficients[..., column].T) == pytest.approx(
            covariance, abs=0.05 * covariance.max()
        )
        error = np.sqrt(np.diag(covariance) / 20_000)
        assert (np.abs(coefficients[..., column].mean(0) - mean[:, column]) < 4.5 * error).all()


def test_regression_predictive_density_is_the_ratio_of_two_marginal_likelihoods():
    """Under the conjugate prior all data together are multivariate t."""
    design, x = normal(9, 2), normal(9, 1, seed=7)
    prior = NormalInverseGamma(0.5, shape=2.0, rate=3.0)
    draws = LinearRegression(design[:8], x[:8], prior=prior).draws(design[8:], 1)
    found = draws.reference_draws[0].likelihood(x[8:]).log_prob(x[8:]).item()

    def marginal(n):
        h = design[:n].numpy()
        scale = 3.0 / 2.0 * (np.eye(n) + h @ h.T / 0.5)
        return stats.multivariate_t(shape=scale, df=4.0).logpdf(x[:n, 0].numpy())

    assert found == pytest.approx(marginal(9) - marginal(8), abs=1e-10)
    known = LinearRegression(design[:8], x[:8], noise_scale=0.7, prior=NormalInverseGamma(0.5))
    found = known.draws(design[8:], 1).reference_draws[0].likelihood(x[8:]).log_prob(x[8:]).item()

    def known_marginal(n):
        h = design[:n].numpy()
        covariance = 0.49 * (np.eye(n) + h @ h.T / 0.5)
        return stats.multivariate_normal(cov=covariance).logpdf(x[:n, 0].numpy())

    assert found == pytest.approx(known_marginal(9) - known_marginal(8), abs=1e-10)


def test_poisson_posterior_and_predictive_against_scipy():
    x = torch.tensor([[0.0, 2.0], [1.0, 5.0], [0.0, 3.0]])
    draws = PoissonGamma(x.double()).draws(4, 20_000)
    rates = torch.stack([draw.law.mean[0] for draw in draws]).numpy()
    for column, total in enumerate((1, 10)):
        law = stats.gamma(0.1 + total, scale=1 / 3.2)
        assert stats.kstest(rates[:, column], law.cdf).pvalue > 1e-3
    counts = torch.arange(4.0).double()[:, None].expand(4, 2)
    found = draws.reference_draws[0].likelihood(counts).log_prob(counts)
    expected = stats.nbinom.logpmf(counts, [1.1, 10.1], 3.2 / 4.2).sum(1)
    assert found.numpy() == pytest.approx(expected)
    assert draws.reference.law.mean[0].tolist() == pytest.approx([1.1 / 3.2, 10.1 / 3.2])


def grid_posterior(x, noise_scale, prior):
    """Posterior of (mu_0, tau_0) on a fine grid, from the joint density of the items."""
    mu = np.linspace(-6, 6, 201)
    tau = (np.arange(400) + 0.5) / 400 * 12
    n_items = x.shape[1]
    log = np.zeros((201, 400))
    for t, column in zip(tau, log.T, strict=True):
        covariance = noise_scale**2 * np.eye(n_items) + t**2
        inverse, (_, determinant) = np.linalg.inv(covariance), np.linalg.slogdet(covariance)
        for row in x:
            e = row[None] - mu[:, None]
            column += -0.5 * (np.einsum("mi,ij,mj->m", e, inverse, e) + determinant)
    log += prior(tau)
    weight = np.exp(log - log.max())
    return mu, tau, weight / weight.sum()


@pytest.mark.parametrize("scale_prior", [None, HalfNormal(torch.tensor(1.0).double())])
def test_two_level_posterior_against_a_grid(scale_prior):
    x = normal(8, 1) + 2 * normal(8, 3, seed=8)
    prior = np.zeros_like if scale_prior is None else stats.halfnorm.logpdf
    mu, tau, weight = grid_posterior(x.numpy(), 2.0, prior)
    model = TwoLevelGaussian(x, noise_scale=2.0, scale_prior=scale_prior)
    quantiles = model.scale_quantiles(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    expected = np.interp([0.1, 0.5, 0.9], weight.sum(0).cumsum(), tau + 0.015)
    assert quantiles.numpy() == pytest.approx(expected, rel=5e-3)

    draws = model.new_items(4, 20_000)
    means = torch.stack([draw.law.mean[:, 0] for draw in draws]).numpy()
    v = tau**2 + 4 / 3
    shrunk = x.mean(1).numpy()[:, None, None] - mu[:, None]
    loc = mu[:, None] + tau**2 / v * shrunk
    first = (weight * loc).sum((1, 2))
    second = (weight * (loc**2 + tau**2 / v * 4 / 3)).sum((1, 2))
    sd = np.sqrt(second - first**2)
    assert np.abs(means.mean(0) - first).max() < 4.5 * sd.max() / 20_000**0.5
    assert means.std(0) == pytest.approx(sd, rel=0.03)
    assert draws.reference.law.mean[:, 0].numpy() == pytest.approx(first, abs=0.02)


def test_two_level_predictive_densities_against_a_grid():
    x, new = normal(8, 1) + 2 * normal(8, 3, seed=8), 2 * normal(8, 2, seed=9)
    mu, tau, weight = grid_posterior(x.numpy(), 2.0, np.zeros_like)
    model = TwoLevelGaussian(x, noise_scale=2.0)

    def density(draws):
        parts = [draw.likelihood(new).log_prob(new) for draw in draws.reference_draws]
        return torch.stack(parts).exp().mean(0).numpy()

    def integrated(loc, variance):  # loc (8, M, T), variance (T,): items share this effect
        total = np.zeros(8)
        for t in range(len(tau)):
            law = stats.multivariate_normal(cov=4 * np.eye(2) + variance[t])
            e = new.numpy()[:, None] - loc[:, :, t, None]
            total += (weight[:, t] * law.pdf(e)).sum(1)
        return total

    v = tau**2 + 4 / 3
    flat = np.broadcast_to(mu[:, None], (8, len(mu), len(tau)))
    given = mu[:, None] + tau**2 / v * (x.mean(1).numpy()[:, None, None] - mu[:, None])
    new_groups, new_items = model.new_groups(8, 2, 1), model.new_items(2, 1)
    assert density(new_groups) == pytest.approx(integrated(flat, tau**2), rel=0.02)
    assert density(new_items) == pytest.approx(integrated(given, tau**2 / v * 4 / 3), rel=0.02)


def test_replicates_of_new_groups_have_the_hierarchy_s_covariance():
    draws = TwoLevelGaussian(normal(200, 8) + 3 * normal(200, 1), noise_scale=1.0).new_groups(
        40_000, 3, 1
    )
    covariance = np.cov(draws.reference.replicate().T)
    expected = draws.reference.law.covariance_matrix[0].numpy()
    assert covariance == pytest.approx(expected, rel=0.05)
    assert expected[0, 0] - expected[0, 1] == pytest.approx(1)


def test_masked_cells_have_the_conditional_normal_distribution():
    loadings, mean, x, mask = normal(5, 2), normal(5, seed=1), normal(6, 5), mask_of((6, 5), 11)
    model = ProbabilisticPCA(loadings, 0.8, mean)
    draws = model.masked_cells(x.masked_fill(mask, 1e3), mask, 20_000)
    covariance = (loadings @ loadings.T).numpy() + 0.64 * np.eye(5)
    conditional, variance = np.zeros((6, 5)), np.zeros((6, 5))
    for i in range(6):
        out, seen = np.flatnonzero(mask[i]), np.flatnonzero(~mask[i])
        gain = covariance[np.ix_(out, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        conditional[i, out] = mean[out].numpy() + gain @ (x[i, seen] - mean[seen]).numpy()
        left = covariance[np.ix_(out, out)] - gain @ covariance[np.ix_(seen, out)]
        variance[i, out] = np.diag(left)
    (exact,) = draws.reference_draws
    assert exact.law.mean[:, 0].numpy() == pytest.approx(conditional[mask.numpy()], abs=1e-10)
    assert exact.law.variance[:, 0].numpy() == pytest.approx(variance[mask.numpy()], abs=1e-10)
    assert torch.equal(draws.reference.law.mean, exact.law.mean)
    means = torch.stack([draw.law.mean[:, 0] for draw in draws]).numpy()
    assert means.var(0) == pytest.approx(variance[mask.numpy()] - 0.64, rel=0.06)


def prior_state(n_sets, n_units, n_features, n_factors, prior, generator):
    def standard(*shape):
        return torch.randn(n_sets, *shape, generator=generator, dtype=torch.float64)

    gamma = torch.distributions.Gamma(prior.noise_shape, prior.noise_rate)
    noise_variance = 1 / gamma.sample((n_sets,)).double()
    coefficients = prior.scale * standard(n_features, 1 + n_factors)
    return State(coefficients, noise_variance, standard(n_units, n_factors))


def data_given(state, generator):
    mean = state.coefficients[..., :1].mT + state.factors @ state.coefficients[..., 1:].mT
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    return mean + state.noise_variance.sqrt()[:, None, None] * noise


@pytest.mark.parametrize("n_masked", [0, 12])
@pytest.mark.parametrize("n_units", [4, 10])
def test_gibbs_sweep_leaves_the_joint_distribution_invariant(n_units, n_masked):
    """Joint distribution tests of posterior simulators (Geweke, 2004), 4,000 chains at once.

    States start at the prior; data are redrawn given the state before each sweep, so that after
    any number of cycles the state has its prior distribution again.
    """
    torch.manual_seed(1)
    prior, generator = PCAPrior(1.5, 3.0, 2.0), torch.Generator().manual_seed(1)
    state = prior_state(4000, n_units, 5, 2, prior, generator)
    seen = None if n_masked == 0 else (~mask_of((4000, n_units, 5), n_masked)).double()
    for _ in range(6):
        x = data_given(state, generator)
        x = x if seen is None else x * seen
        state = PCAChain(x, seen, 2, prior).sweep(state, generator)
    mean, loadings = state.coefficients[..., 0], state.coefficients[..., 1:]
    squares = (loadings.square().sum((1, 2)) / 1.5**2, stats.chi2(10))
    found = {
        "mean": (mean[:, 0] / 1.5, stats.norm),
        "loading": (loadings[:, 1, 0] / 1.5, stats.norm),
        "loadings": squares,
        "noise": (1 / state.noise_variance, stats.gamma(3.0, scale=0.5)),
        "factor": (state.factors[:, 1, 1], stats.norm),
        "factors": (state.factors.square().sum((1, 2)), stats.chi2(2 * n_units)),
    }
    for name, (values, law) in found.items():
        assert stats.kstest(values.numpy(), law.cdf).pvalue > 1e-3, name


def test_bayesian_pca_of_many_rows_finds_the_covariance():
    loadings = 2 * normal(6, 2)
    x = normal(4000, 2, seed=5) @ loadings.T + 0.5 * normal(4000, 6, seed=6) + 1
    draws = BayesianPCA(x, 2).new_rows(1, 50, burn_in=100)
    covariance = (loadings @ loadings.T).numpy() + 0.25 * np.eye(6)
    found = draws.reference.law.covariance_matrix[0].numpy()
    assert found == pytest.approx(covariance, abs=0.05 * covariance.max())
    assert draws.reference.law.mean[0].numpy() == pytest.approx(np.ones(6), abs=0.2)
    spread = np.stack([draw.law.mean[0] for draw in draws]).std(0)
    assert spread == pytest.approx(np.sqrt(np.diag(covariance) / 4000), rel=0.5)


def test_held_out_cells_do_not_enter_the_fit():
    x, mask = normal(12, 4), mask_of((12, 4), 9)
    for make in (
        lambda x: BayesianPCA(x, 2, mask=mask).masked_cells(3, burn_in=3, thin=1),
        lambda x: ProbabilisticPCA(normal(4, 2), 1.0).masked_cells(x, mask, 3),
    ):
        for one, other in zip(make(x), make(x.masked_fill(mask, 9.0)), strict=True):
            assert torch.equal(one.law.mean, other.law.mean)


ERRORS = {
    "design and x must have the same units": lambda: LinearRegression(normal(3, 1), normal(4, 1)),
    "a flat prior needs more units than covariates, got 3 and 3": lambda: LinearRegression(
        normal(3, 3), normal(3, 1)
    ),
    "prior.precision must be positive": lambda: LinearRegression(
        normal(3, 3), normal(3, 1), prior=NormalInverseGamma(0.0)
    ),
    "noise_scale must be positive and finite, got -1": lambda: LinearRegression(
        normal(3, 1), normal(3, 1), noise_scale=-1.0
    ),
    "design must have 1 columns": lambda: LinearRegression(normal(3, 1), normal(3, 1)).draws(
        normal(3, 2), 1
    ),
    "n_draws must be a positive integer, got 0": lambda: PoissonGamma(torch.ones(2, 1)).draws(2, 0),
    "x must be counts, got the negative number -1": lambda: PoissonGamma(-torch.ones(2, 1)),
    "rate must be positive": lambda: PoissonGamma(torch.ones(2, 1), rate=0.0),
    "x must be floating point of shape": lambda: PoissonGamma(torch.ones(2)),
    "x has 1 NaN or infinite entries of 2": lambda: PoissonGamma(torch.tensor([[1.0], [np.nan]])),
    "x must have at least 3 groups, got 2": lambda: TwoLevelGaussian(normal(2, 3), noise_scale=1.0),
    r"loadings must have shape \(G, K\)": lambda: ProbabilisticPCA(normal(3), 1.0),
    r"mean must have shape \(3,\)": lambda: ProbabilisticPCA(normal(3, 1), 1.0, normal(2)),
    "x must have 3 features": lambda: ProbabilisticPCA(normal(3, 1), 1.0).factors(normal(2, 2)),
    "mask must hide at least one cell": lambda: ProbabilisticPCA(normal(3, 1), 1.0).masked_cells(
        normal(2, 3), torch.zeros(2, 3, dtype=torch.bool), 1
    ),
    "n_factors must lie between 1 and G - 1 = 2, got 3": lambda: BayesianPCA(normal(5, 3), 3),
    r"mask must be boolean of shape \(5, 3\)": lambda: BayesianPCA(
        normal(5, 3), 1, mask=torch.ones(5, 3)
    ),
    "masked_cells needs a mask": lambda: BayesianPCA(normal(5, 3), 1).masked_cells(1),
}


@pytest.mark.parametrize(("message", "make"), ERRORS.items(), ids=ERRORS)
def test_errors_say_what_was_expected(message, make):
    with pytest.raises(ValueError, match=message):
        make()
