"""Single methods against scikit-learn, scipy and closed forms."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis

from probinterp import simulate
from probinterp.baselines import (
    Baseline,
    FittedModel,
    PerStudy,
    StackedFactorAnalysis,
    StudyMeans,
    multistudy_factor_analysis,
    multistudy_sparse_vae,
    predicted_covariance,
    sample_covariance,
    sparse_vae,
    vae,
)
from probinterp.inference import ArrayData, posterior
from probinterp.likelihoods import (
    GaussianLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    RoundedLogNormalLikelihood,
)
from probinterp.models import Batch, FactorAnalysis, MultiStudyFactorAnalysis, fit_ecm

SHORT = {"max_epochs": 3, "batch_size": 64}


@pytest.fixture(scope="module")
def gaussian():
    truth = simulate.multistudy(2, 60, 1, 1, features_per_factor=3, n_two_parent=1, seed=1)
    return ArrayData(truth.x, study=truth.study)


@pytest.fixture(scope="module")
def counts():
    truth = simulate.multistudy(
        2, 60, 1, 1, features_per_factor=3, n_two_parent=1, likelihood="negative_binomial", seed=1
    )
    return ArrayData(truth.x, size_factor=truth.size_factor, study=truth.study)


def test_stacked_factor_analysis_is_scikit_learns(gaussian):
    x = gaussian.x.double().numpy()
    other = SklearnFactorAnalysis(2, tol=1e-3, max_iter=20_000, random_state=0).fit(x)
    fitted = StackedFactorAnalysis(2).fit(gaussian, 0)
    expected = other.score_samples(x)
    batch = gaussian.batch()
    assert fitted.log_density(batch).numpy() == pytest.approx(expected, rel=1e-4)
    for m in (0, 1):
        assert fitted.covariance(m).numpy() == pytest.approx(other.get_covariance(), abs=1e-4)
    assert fitted.scores(batch).numpy() == pytest.approx(other.transform(x), abs=1e-4)
    assert fitted.support is None
    assert fitted.block is None
    assert fitted.covariance_draws is None
    guide = posterior(fitted.model, batch)["z"]  # the guide is the posterior
    exact = fitted.model.exact_posterior(gaussian.x)
    torch.testing.assert_close(guide.mean, exact.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guide.covariance_matrix, exact.covariance_matrix)


def test_separate_fits_are_those_of_the_studies_alone(gaussian):
    fitted = PerStudy(StackedFactorAnalysis(2), "per-study FA").fit(gaussian, 0)
    density, scores = fitted.log_density(gaussian.batch()), fitted.scores(gaussian.batch())
    assert fitted.block.tolist() == [0, 0, 1, 1]
    for m in (0, 1):
        rows = gaussian.study == m
        alone = StackedFactorAnalysis(2).fit(ArrayData(gaussian.x[rows]), 0)
        expected = alone.log_density(Batch(gaussian.x[rows]))
        assert torch.equal(density[rows], expected)
        assert torch.equal(fitted.covariance(m), alone.covariance(0))
        own = fitted.block == m
        assert torch.equal(scores[rows][:, own], alone.scores(Batch(gaussian.x[rows])))
        assert (scores[rows][:, ~own] == 0).all()


def test_multistudy_factor_analysis_is_the_model_fitted_by_ecm(gaussian):
    fitted = multistudy_factor_analysis(1, 1).fit(gaussian, 0)
    model = MultiStudyFactorAnalysis(gaussian.x.shape[1], 1, 1, 2)
    fit_ecm(model, gaussian)
    batch = gaussian.batch()
    expected = model.log_marginal_likelihood(batch).double()
    torch.testing.assert_close(fitted.log_density(batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fitted.covariance(1), model.covariance(1).double())
    assert fitted.block.tolist() == [-1, 0, 1]
    assert (fitted.scores(batch)[gaussian.study == 0, 2] == 0).all()


def test_study_means_of_normal_data_have_closed_forms(gaussian):
    fitted = StudyMeans(GaussianLikelihood).fit(gaussian, 0)
    x, study = gaussian.x.double(), gaussian.study
    means = torch.stack([x[study == m].mean(0) for m in (0, 1)])
    scale = (x - means[study]).square().mean(0).sqrt()
    expected = stats.norm(means[study], scale).logpdf(x).sum(1)
    assert fitted.log_density(gaussian.batch()).numpy() == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(fitted.covariance(1), scale.square().diag(), rtol=1e-5)
    assert fitted.scores(gaussian.batch()) is None


def test_study_means_of_counts_maximise_the_negative_binomial_likelihood(counts):
    fitted = StudyMeans(NegativeBinomialLikelihood, "NB").fit(counts, 0)
    x, s = counts.x.numpy(), counts.size_factor.double().numpy()
    study = counts.study.numpy()

    def loss(theta, j):
        mean, r = s * np.exp(theta[study]), np.exp(theta[2])
        return -stats.nbinom(r, r / (r + mean)).logpmf(x[:, j]).sum()

    runs = [optimize.minimize(loss, [3.0, 3.0, 1.0], args=(j,)) for j in range(x.shape[1])]
    total = fitted.log_density(counts.batch()).sum().item()
    assert total == pytest.approx(-sum(run.fun for run in runs), abs=1e-3)
    mean, r = np.exp([run.x[1] for run in runs]), np.exp([run.x[2] for run in runs])
    assert fitted.covariance(1).diagonal().numpy() == pytest.approx(mean + mean**2 / r, rel=1e-3)
    assert fitted.covariance(1).count_nonzero() == x.shape[1]


def test_predicted_covariance_of_counts_is_at_size_factor_one(counts):
    torch.manual_seed(0)
    model = FactorAnalysis(3, 1, likelihood=NegativeBinomialLikelihood(3))
    with torch.no_grad():
        model.loadings.copy_(torch.tensor([[0.4], [-0.3], [0.2]]))
        model.likelihood.intercept.copy_(torch.tensor([3.0, 2.0, 1.0]))
        model.likelihood.log_inverse_dispersion.fill_(np.log(5.0))
    data = ArrayData(counts.x[:, :3], size_factor=3 * counts.size_factor, study=counts.study)
    fitted = FittedModel(model, data, n_draws=200_000)
    mean = (torch.tensor([3.0, 2.0, 1.0]) + model.loadings[:, 0].square() / 2).exp()
    shared = (model.loadings @ model.loadings.T).exp()
    expected = torch.outer(mean, mean) * (shared - 1)
    expected = expected + (mean + mean.square() * shared.diagonal() / 5).diag()
    found = fitted.covariance(0)
    error = (found - expected) / torch.outer(expected.diagonal(), expected.diagonal()).sqrt()
    assert error.abs().max() < 0.02
    assert fitted.covariance_draws == 200_000


def test_predicted_covariance_equals_that_of_its_draws():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    train = ArrayData(x, study=torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    drawn = []

    def replicate(batch, seed):
        assert (batch.study == 1).all()
        drawn.append(batch.x + 100)
        return drawn[-1]

    found = predicted_covariance(replicate, train, 1, n_draws=4500, seed=0)
    assert [len(rows) for rows in drawn] == [2000, 2000, 500]
    torch.testing.assert_close(found, torch.cat(drawn).double().T.cov(), rtol=1e-6, atol=1e-8)


def test_sample_covariance_of_counts_does_not_depend_on_their_depth():
    generator = torch.Generator().manual_seed(0)
    n, mean = 200_000, torch.tensor([4.0, 1.0])
    effect = (0.3 * torch.randn(n, 1, generator=generator)).exp()
    size_factor = 0.2 + 2 * torch.rand(n, generator=generator)
    at_one, deep = (
        torch.poisson(s.unsqueeze(1) * effect * mean, generator=generator)
        for s in (torch.ones(n), size_factor)
    )
    expected = at_one.double().T.cov()
    found = sample_covariance(Batch(deep, size_factor=size_factor))
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.02)
    uncorrected = (deep.double() / size_factor.unsqueeze(1)).T.cov()
    assert (uncorrected.diagonal() > 1.1 * expected.diagonal()).all()
    torch.testing.assert_close(sample_covariance(Batch(at_one)), expected)


MAKERS = {
    "stacked FA": lambda likelihood: StackedFactorAnalysis(2, likelihood, fitting=SHORT),
    "sparse VAE": lambda likelihood: sparse_vae(3, likelihood=likelihood, fitting=SHORT),
    "VAE": lambda likelihood: vae(2, likelihood=likelihood, fitting=SHORT),
    "multi-study sparse VAE": lambda likelihood: multistudy_sparse_vae(
        2, 1, likelihood=likelihood, fitting=SHORT, mended=False
    ),
    "per-study sparse VAE": lambda likelihood: PerStudy(
        sparse_vae(3, likelihood=likelihood, fitting=SHORT), "per-study sparse VAE"
    ),
    "study means": lambda likelihood: StudyMeans(likelihood),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kind", ["gaussian", "counts", "log counts"])
def test_every_method_fits_scores_and_refuses_unknown_studies(make, kind, gaussian, counts):
    likelihood, data = {
        "gaussian": (GaussianLikelihood, gaussian),
        "counts": (NegativeBinomialLikelihood, counts),
        "log counts": (RoundedLogNormalLikelihood, counts),
    }[kind]
    baseline = make(likelihood)
    assert isinstance(baseline, Baseline)
    fitted, again = baseline.fit(data, 3), baseline.fit(data, 3)
    batch = data.batch()
    density = fitted.log_density(batch)
    assert density.shape == (120,)
    assert torch.isfinite(density).all()
    assert torch.equal(density, again.log_density(batch))
    for fitted_model in [fitted, *getattr(fitted, "parts", {}).values()]:
        if isinstance(fitted_model, FittedModel):
            fitted_model.n_draws = 500
    covariance = fitted.covariance(1)
    assert torch.allclose(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > 0
    scores = fitted.scores(batch)
    for part in (fitted.support, fitted.block):
        assert part is None or part.shape[-1] == scores.shape[1]
    with pytest.raises(ValueError, match=r"studies \[2\] were not among the fitted data"):
        fitted.covariance(2)
    strange = batch._replace(study=batch.study + 1)
    with pytest.raises(ValueError, match=r"studies \[2\] were not among .* \[0, 1\]"):
        fitted.log_density(strange)


def test_restarts_keep_the_largest_objective(gaussian):
    from probinterp.inference import full_objective

    single = [sparse_vae(2, n_hidden=8, fitting=SHORT).fit(gaussian, s).model for s in (5, 6)]
    best = sparse_vae(2, n_hidden=8, fitting=SHORT, n_restarts=2).fit(gaussian, 5).model
    expected = max(full_objective(model, gaussian, seed=s) for model, s in zip(single, (5, 6)))  # noqa: B905
    found = [full_objective(best, gaussian, seed=s) for s in (5, 6)]
    assert expected in found


def test_methods_refuse_data_that_they_have_no_density_for(gaussian, counts):
    for baseline in (
        StackedFactorAnalysis(1),
        multistudy_factor_analysis(1, 1),
        StudyMeans(GaussianLikelihood),
    ):
        with pytest.raises(ValueError, match="data with size factors are counts"):
            baseline.fit(counts, 0)
    with pytest.raises(ValueError, match="MultinomialLikelihood makes features dependent"):
        StudyMeans(MultinomialLikelihood).fit(ArrayData(counts.x, study=counts.study), 0)
    masked = ArrayData(gaussian.x, study=gaussian.study, mask=gaussian.x > 0)
    with pytest.raises(ValueError, match="no masked entries"):
        StackedFactorAnalysis(1).fit(masked, 0)
    with pytest.raises(ValueError, match="the study of every observation, got None"):
        PerStudy(StackedFactorAnalysis(1), "FA").fit(ArrayData(gaussian.x), 0)
    fitted = PerStudy(StackedFactorAnalysis(1), "FA").fit(gaussian, 0)
    with pytest.raises(ValueError, match="the study of every observation, got None"):
        fitted.log_density(Batch(gaussian.x))


def test_likelihoods_with_options_are_partials(counts):
    by_study = partial(NegativeBinomialLikelihood, n_studies=2)
    one = StudyMeans(NegativeBinomialLikelihood).fit(counts, 0)
    two = StudyMeans(by_study).fit(counts, 0)
    batch = counts.batch()
    assert two.log_density(batch).sum() > one.log_density(batch).sum()  # more parameters


def test_a_mended_and_screened_model_has_the_columns_that_came_back():
    truth = simulate.multistudy(n_studies=2, n_obs=30, n_shared=2, features_per_factor=4, seed=0)
    data = ArrayData(truth.x, study=truth.study)
    options = {"fitting": SHORT, "n_hidden": 8, "spike": 60.0, "slab": 2.0}
    whole = multistudy_sparse_vae(2, 1, **options).fit(data, 0)
    screened = multistudy_sparse_vae(2, 1, n_refits=2, **options).fit(data, 0)
    assert whole.block.tolist() == screened.block.tolist() == [-1, -1, 0, 1]
    lost = whole.support.any(0) & ~screened.support.any(0)
    assert not lost[:2].any()  # a screen leaves shared columns alone
