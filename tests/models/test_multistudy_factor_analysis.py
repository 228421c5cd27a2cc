"""Multi-study factor analysis against textbook formulas, direct optimisation and scikit-learn."""

import functools

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import optimize, stats
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis
from torch.distributions import kl_divergence

from probinterp.inference import (
    ArrayData,
    MeanFieldELBO,
    factors,
    fit,
    full_objective,
    load,
    log_predictive_density,
    posterior,
    predictive_draws,
    save,
)
from probinterp.models import Batch, FactorAnalysis, MultiStudyFactorAnalysis, fit_ecm
from probinterp.models.gated_multivariate_normal import GatedMultivariateNormal
from probinterp.recovery import rv_coefficient


def simulated(sizes, n_features, n_shared, n_specific, seed, noise=0.5):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    shared = normal(n_features, n_shared)
    own = [normal(n_features, n) for n in n_specific]
    x, study, covariance = [], [], []
    for m, n in enumerate(sizes):
        signal = normal(n, n_shared) @ shared.T + normal(n, n_specific[m]) @ own[m].T
        x.append(signal + noise * normal(n, n_features) + m)
        study += [m] * n
        total = shared @ shared.T + own[m] @ own[m].T
        covariance.append(total + noise**2 * torch.eye(n_features))
    return Batch(torch.cat(x), torch.tensor(study)), covariance


def random_model(seed=3):
    """Two studies of five features, 2 shared and 1 or 2 specific factors, in double precision."""
    torch.manual_seed(seed)
    model = MultiStudyFactorAnalysis(5, 2, [1, 2], 2).double()
    with torch.no_grad():
        model.loadings.normal_()
        model.intercept.normal_()
        model.likelihood.log_scale.normal_(std=0.3)
    x, study = torch.randn(9, 5, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])
    return model, Batch(x, study)


def moments(model, m):
    """Loadings, covariance and mean of a study, written out."""
    w = model.loadings.detach().numpy()
    columns = [0, 1, 2] if m == 0 else [0, 1, 3, 4]
    noise = np.diag(model.likelihood.scale.detach().numpy()[m] ** 2)
    return w, columns, w[:, columns] @ w[:, columns].T + noise, model.intercept[m].detach().numpy()


def test_posterior_evidence_and_covariance_equal_textbook_formulas():
    model, batch = random_model()
    density, exact = model.log_marginal_likelihood(batch), model.exact_posterior(batch)
    for i, m in enumerate(batch.study.tolist()):
        w, columns, total, mean = moments(model, m)
        x = batch.x[i].numpy()
        expected = stats.multivariate_normal(mean, total).logpdf(x)
        assert density[i].item() == pytest.approx(expected, rel=1e-10)
        gain = w[:, columns].T @ np.linalg.inv(total)  # conditioning the joint normal of (z, x)
        location, covariance = np.zeros(5), np.zeros((5, 5))
        location[columns] = gain @ (x - mean)
        covariance[np.ix_(columns, columns)] = np.eye(len(columns)) - gain @ w[:, columns]
        assert exact.mean[i].detach().numpy() == pytest.approx(location, abs=1e-12)
        assert exact.covariance_matrix[i].detach().numpy() == pytest.approx(covariance, abs=1e-12)
        assert model.covariance(m).detach().numpy() == pytest.approx(total, abs=1e-12)


def test_masked_rows_are_conditional_on_their_observed_entries():
    model, batch = random_model()
    mask = torch.rand(9, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    masked = batch._replace(mask=mask, x=torch.where(mask, batch.x, 99.0))
    density, exact = model.log_marginal_likelihood(masked), model.exact_posterior(masked)
    for i, m in enumerate(batch.study.tolist()):
        w, columns, total, mean = moments(model, m)
        seen = mask[i].numpy()
        x, sub = batch.x[i].numpy()[seen], total[np.ix_(seen, seen)]
        expected = stats.multivariate_normal(mean[seen], sub).logpdf(x)
        assert density[i].item() == pytest.approx(expected, rel=1e-10)
        location = np.zeros(5)
        location[columns] = w[seen][:, columns].T @ np.linalg.inv(sub) @ (x - mean[seen])
        assert exact.mean[i].detach().numpy() == pytest.approx(location, abs=1e-12)


def test_marginal_over_any_factors_has_the_moments_of_the_program():
    model, batch = random_model()
    prior = model.exact_marginal(batch)
    assert torch.allclose(prior.log_prob(batch.x), model.log_marginal_likelihood(batch))
    assert torch.allclose(prior.covariance_matrix[1], model.covariance(1))
    exact = model.exact_locals(batch)["z"]
    given = model.exact_marginal(batch, {"z": exact})
    w, noise = model.loadings, model.likelihood.scale[0].square().diag()
    expected = w @ exact.covariance_matrix[0] @ w.T + noise
    assert torch.allclose(given.covariance_matrix[0], expected)
    assert torch.allclose(given.mean[0], w @ exact.mean[0] + model.intercept[0])
    assert model.exact_marginal(batch._replace(mask=batch.x > 0)) is None


def test_codes_outside_the_gate_are_exactly_zero_and_no_gradient_passes():
    model, batch = random_model()
    outside = ~model.gate[batch.study]
    z = posterior(model, batch)["z"]
    assert outside.sum() > 0
    assert (z.mean[outside] == 0).all()
    assert (z.sample()[outside] == 0).all()
    assert (z.variance[outside] == 0).all()
    first = batch.rows(batch.study == 0)
    (gradient,) = torch.autograd.grad(model.log_marginal_likelihood(first).sum(), model.loadings)
    assert (gradient[:, model.block == 1] == 0).all()
    assert (gradient[:, model.block == 0] != 0).all()


def test_gated_normal_density_and_divergence_are_those_of_the_coordinates_that_exist():
    model, batch = random_model()
    found = posterior(model, batch)["z"]
    prior = model._prior(batch)
    z = found.sample()
    within = model.gate[0]
    part = torch.distributions.MultivariateNormal(
        found.mean[0][within], found.covariance_matrix[0][within][:, within]
    )
    standard = torch.distributions.MultivariateNormal(0 * part.loc, torch.eye(3).double())
    assert found.log_prob(z)[0].item() == pytest.approx(part.log_prob(z[0][within]).item())
    divergence = kl_divergence(found, prior)[0].item()
    assert divergence == pytest.approx(kl_divergence(part, standard).item())
    assert isinstance(found.expand((3, 9)), GatedMultivariateNormal)
    assert found.expand((3, 9)).log_prob(z).shape == (3, 9)


def test_elbo_is_the_log_likelihood_and_equals_pyros():
    model, batch = random_model()
    losses = []
    for elbo in (MeanFieldELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(3)
        losses.append(elbo.differentiable_loss(model.model, model.guide, batch, 9).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    exact = model.log_marginal_likelihood(batch)
    weighted = log_predictive_density(model, batch, n_samples=1)
    assert torch.allclose(weighted, exact)  # the weights are constant under the exact posterior
    bound = full_objective(model, ArrayData.of(batch), n_samples=400)
    assert bound == pytest.approx(exact.mean().item(), abs=0.1)


def test_svi_comes_close_to_ecm():
    batch, _ = simulated((200, 200), 8, 1, (1, 1), seed=2)
    by_ecm = MultiStudyFactorAnalysis(8, 1, 1, 2)
    best = fit_ecm(by_ecm, batch).log_likelihood[-1].item()
    torch.manual_seed(0)
    model = MultiStudyFactorAnalysis(8, 1, 1, 2)
    adam = lambda p: torch.optim.Adam(p, lr=2e-2)  # noqa: E731
    fit(model, ArrayData.of(batch), max_epochs=400, batch_size=400, optimizer=adam, progress=False)
    reached = model.log_marginal_likelihood(batch).mean().item()
    assert reached == pytest.approx(best, abs=0.02)


def negative_log_likelihood(flat, x, study, gate, n_features):
    """Of all parameters as one vector, with full covariance matrices."""
    n_factors = gate.shape[1]
    loadings = flat[: n_features * n_factors].view(n_features, n_factors)
    rest = flat[n_features * n_factors :].view(2, len(gate), n_features)
    total = torch.zeros((), dtype=flat.dtype)
    for m, row in enumerate(gate):
        w = loadings * row
        covariance = w @ w.T + (2 * rest[1, m]).exp().diag()
        law = torch.distributions.MultivariateNormal(rest[0, m], covariance)
        total = total - law.log_prob(x[study == m]).sum()
    return total / len(x)


def test_ecm_reaches_the_maximum_that_direct_optimisation_finds():
    batch, _ = simulated((60, 90), 6, 1, (1, 1), seed=5)
    model = MultiStudyFactorAnalysis(6, 1, 1, 2)
    history = fit_ecm(model, batch, tol=1e-12, max_iter=50_000)
    assert history.converged
    x = batch.x.double()

    def objective(flat):
        theta = torch.tensor(flat, requires_grad=True)
        value = negative_log_likelihood(theta, x, batch.study, model.gate, 6)
        value.backward()
        return value.item(), theta.grad.numpy()

    generator = np.random.default_rng(0)
    variance = torch.stack([x[batch.study == m].var(0, correction=0) for m in range(2)])
    least = (0.5 * (0.005 * variance).log()).flatten().tolist()  # the bound on noise scales
    bounds = [(None, None)] * 30 + [(value, None) for value in least]
    options = {"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9}
    minimise = functools.partial(
        optimize.minimize, objective, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    found = [minimise(0.5 * generator.normal(size=42)) for _ in range(4)]
    best = min(found, key=lambda run: run.fun)
    assert history.log_likelihood[-1].item() == pytest.approx(-best.fun, abs=1e-6)
    loadings = torch.from_numpy(best.x[:18]).view(6, 3)
    noise = torch.from_numpy(best.x[18:]).view(2, 2, 6)[1].mul(2).exp()
    for m in range(2):
        w = loadings * model.gate[m]
        expected = w @ w.T + noise[m].diag()
        assert torch.allclose(model.covariance(m).double(), expected, atol=2e-3)


def test_one_study_without_specific_factors_is_scikit_learns_factor_analysis():
    batch, _ = simulated((300,), 10, 3, (0,), seed=1)
    model = MultiStudyFactorAnalysis(10, 3, 0, 1)
    history = fit_ecm(model, Batch(batch.x), tol=1e-12, max_iter=50_000)
    x = batch.x.double().numpy()
    other = SklearnFactorAnalysis(3, tol=1e-10, max_iter=50_000, svd_method="lapack").fit(x)
    assert history.log_likelihood[-1].item() == pytest.approx(other.score(x), abs=1e-5)
    theirs = torch.from_numpy(other.get_covariance()).float()
    assert torch.allclose(model.covariance(0), theirs, atol=2e-3)
    same = FactorAnalysis(10, 3)
    with torch.no_grad():
        same.loadings.copy_(model.loadings)
        same.intercept.copy_(model.intercept[0])
        same.likelihood.log_scale.copy_(model.likelihood.log_scale)
    ours = model.log_marginal_likelihood(Batch(batch.x))
    expected = same.log_marginal_likelihood(batch.x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "n_features", "n_specific"),
    [((50, 80, 40), 12, (1, 3, 0)), ((10, 15, 12, 14), 60, (1, 1, 1, 1)), ((400, 9), 30, (2, 1))],
    ids=["unequal blocks", "n < p", "n < p in one study"],
)
def test_log_likelihood_never_falls_and_is_that_of_the_model(sizes, n_features, n_specific):
    batch, _ = simulated(sizes, n_features, 3, n_specific, seed=4)
    model = MultiStudyFactorAnalysis(n_features, 3, list(n_specific), len(sizes)).double()
    history = fit_ecm(model, batch._replace(x=batch.x.double()), n_starts=3, tol=1e-6)
    trace = history.log_likelihood
    assert (trace.diff() > -1e-10).all()
    assert history.converged
    assert trace[-1].item() == pytest.approx(max(history.starts))
    exact = model.log_marginal_likelihood(batch._replace(x=batch.x.double())).mean().item()
    assert trace[-1].item() == pytest.approx(exact, abs=1e-8)
    floor = torch.stack([batch.x[batch.study == m].var(0, correction=0) for m in range(len(sizes))])
    assert (model.likelihood.scale.square() >= 0.005 * floor * (1 - 1e-4)).all()


def test_order_of_the_studies_changes_only_their_labels():
    batch, _ = simulated((40, 70, 30), 10, 2, (1, 0, 2), seed=7)
    model = MultiStudyFactorAnalysis(10, 2, [1, 0, 2], 3)
    one = fit_ecm(model, batch, tol=1e-10, max_iter=20_000)
    new_label = torch.tensor([2, 0, 1])  # of the old studies
    row = torch.randperm(140, generator=torch.Generator().manual_seed(0))
    moved = Batch(batch.x[row], new_label[batch.study[row]])
    other = MultiStudyFactorAnalysis(10, 2, [0, 2, 1], 3)
    two = fit_ecm(other, moved, tol=1e-10, max_iter=20_000)
    assert one.log_likelihood[-1].item() == pytest.approx(two.log_likelihood[-1].item(), abs=1e-7)
    for old, new in enumerate(new_label.tolist()):
        torch.testing.assert_close(
            model.covariance(old), other.covariance(new), atol=1e-3, rtol=1e-3
        )


def test_specific_factors_pay_in_covariances_of_the_studies():
    batch, truth = simulated((200, 150, 300), 20, 3, (1, 1, 1), seed=0)
    model = MultiStudyFactorAnalysis(20, 3, 1, 3)
    fit_ecm(model, ArrayData.of(batch))
    pooled = SklearnFactorAnalysis(4).fit(batch.x.numpy()).get_covariance()
    for m, covariance in enumerate(truth):
        ours = rv_coefficient(model.covariance(m), covariance)
        assert ours > 0.98
        assert ours > rv_coefficient(torch.from_numpy(pooled), covariance)


def test_replicates_scores_and_files(tmp_path):
    batch, _ = simulated((300, 300), 6, 1, (1, 1), seed=3)
    model = MultiStudyFactorAnalysis(6, 1, 1, 2)
    fit_ecm(model, batch)
    many = Batch(torch.zeros(8000, 6), torch.ones(8000, dtype=torch.long))
    draw = next(iter(predictive_draws(model, many, 1, seed=5, scoring="marginal")))
    replicate = draw.replicate()
    torch.testing.assert_close(replicate.mean(0), model.intercept[1], atol=0.15, rtol=0)
    assert (replicate.T.cov() - model.covariance(1)).abs().max() < 0.15 * model.covariance(1).max()
    found = factors(model, ArrayData.of(batch))
    assert found.scores.shape == (600, 3)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    torch.testing.assert_close(
        again.log_marginal_likelihood(batch), model.log_marginal_likelihood(batch)
    )


def test_an_unknown_study_has_shared_factors_only():
    model, batch = random_model()
    unknown = Batch(batch.x, torch.full((9,), -1))
    total = model.loadings[:, :2] @ model.loadings[:, :2].T
    total = total + (2 * model.likelihood.log_scale.mean(0)).exp().diag()
    law = torch.distributions.MultivariateNormal(model.intercept.mean(0), total)
    torch.testing.assert_close(model.log_marginal_likelihood(unknown), law.log_prob(batch.x))
    assert (model.exact_posterior(unknown).mean[:, 2:] == 0).all()


def test_refusals_say_what_came():
    model = MultiStudyFactorAnalysis(4, 1, 1, 2)
    x = torch.randn(6, 4)
    study = torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="2 studies need batch.study, got None"):
        model.log_marginal_likelihood(Batch(x))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        model.exact_posterior(Batch(x, study + 1))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        model.covariance(2)
    with pytest.raises(ValueError, match=r"\[1\] have one observation"):
        fit_ecm(model, Batch(x[:4], study[:4]))
    with pytest.raises(ValueError, match=r"\[1\] have none"):
        fit_ecm(model, Batch(x[:3], study[:3]))
    with pytest.raises(ValueError, match="must be finite"):
        fit_ecm(model, Batch(x / 0 * 0, study))
    with pytest.raises(ValueError, match="masked entries"):
        fit_ecm(model, Batch(x, study, mask=x > 0))
    with pytest.raises(ValueError, match="tol must be positive, got 0"):
        fit_ecm(model, Batch(x, study), tol=0)


def test_features_that_do_not_vary_are_no_obstacle():
    batch, _ = simulated((30, 40), 6, 1, (1, 1), seed=8)
    x = batch.x.clone()
    x[:, 0] = 2.0
    x[batch.study == 0, 1] = 1.0
    model = MultiStudyFactorAnalysis(6, 1, 1, 2)
    history = fit_ecm(model, Batch(x, batch.study))
    assert torch.isfinite(history.log_likelihood).all()
    assert model.covariance(0)[0, 0] < 0.01
    assert model.covariance(0)[1, 1] < 0.01 * model.covariance(1)[1, 1]
