"""Entries that are not observed: in likelihoods, encoders, closed forms, fits and checks."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from probinterp import simulate
from probinterp.criticism import discrepancies, mask_entries, masked_draws, pop_pc
from probinterp.inference import (
    ArrayData,
    MeanFieldELBO,
    cosine,
    fit,
    log_predictive_density,
    posterior,
    predictive_draws,
)
from probinterp.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    RoundedLogNormalLikelihood,
)
from probinterp.masks import MaskedFeatures, std_mean
from probinterp.models import VAE, Batch, FactorAnalysis
from probinterp.nn import SparseDecoder

sys.path.append(str(Path(__file__).parents[1] / "models"))
from cases import MODELS, batch_for  # noqa: E402

SEPARABLE = {
    "gaussian": GaussianLikelihood,
    "negative binomial": NegativeBinomialLikelihood,
    "rounded log-normal": RoundedLogNormalLikelihood,
    "bernoulli": BernoulliLikelihood,
}
JOINT = ("SparseVAE-ratings", "LatentDirichletAllocation")  # no product over features
MASKABLE = [n for n in MODELS if n not in JOINT and isinstance(batch_for(n), Batch)]
N, G = 7, 5


def random_mask(n, n_features, share=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, n_features, generator=generator) > share


def observed_case(name, device):
    torch.manual_seed(1)
    likelihood = SEPARABLE[name](G).double().to(device)
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    x = torch.poisson(torch.full((N, G), 1.5)).double()
    x = (x > 1).double() if name == "bernoulli" else x
    size_factor, mask = 0.5 + torch.rand(N).double(), random_mask(N, G)
    batch = Batch(*(t.to(device) for t in (x, torch.zeros(N), size_factor, mask)))
    return likelihood, batch, torch.randn(N, G, dtype=torch.float64, device=device)


@pytest.mark.parametrize("name", SEPARABLE)
def test_density_is_that_of_the_observed_features(name, device):
    likelihood, batch, eta = observed_case(name, device)
    found = likelihood(eta, batch).log_prob(batch.x)
    for i in range(N):
        seen = batch.mask[i].nonzero().squeeze(1)
        row = Batch(batch.x[i : i + 1], size_factor=batch.size_factor[i : i + 1])
        alone = likelihood(eta[i : i + 1, seen], row, seen)
        expected = alone.log_prob(batch.x[i : i + 1, seen]) if len(seen) else torch.zeros(1)
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", SEPARABLE)
def test_what_is_not_observed_leaves_no_trace(name, device):
    results = []
    for hidden in (1.0, math.nan):
        likelihood, batch, eta = observed_case(name, device)
        one = batch._replace(x=torch.where(batch.mask, batch.x, hidden))
        leaf = eta.clone().requires_grad_()
        law = likelihood(leaf, one)
        assert law.mean.shape == law.variance.shape == (N, G)
        law.log_prob(one.x).sum().backward()
        likelihood.initialize(one)
        results.append(
            [leaf.grad, likelihood.encoder_input(one), *likelihood.state_dict().values()]
        )
        assert (leaf.grad[~batch.mask] == 0).all()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


@pytest.mark.parametrize("name", SEPARABLE)
def test_a_mask_without_gaps_changes_nothing(name, device):
    likelihood, batch, eta = observed_case(name, device)
    full = batch._replace(mask=torch.ones_like(batch.mask))
    bare = batch._replace(mask=None)
    assert torch.equal(likelihood.encoder_input(full), likelihood.encoder_input(bare))
    law = likelihood(eta, full)
    torch.testing.assert_close(law.log_prob(bare.x), likelihood(eta, bare).log_prob(bare.x))
    assert law.sample((3,)).shape == (3, N, G)
    assert law.expand((2, N)).log_prob(bare.x).shape == (2, N)


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("sparse", [False, True])
def test_streamed_decoder_equals_the_dense_one(name, sparse, device):
    likelihood, batch, _ = observed_case(name, device)
    decoder = SparseDecoder(G, 3, 8, chunk_size=2).double().to(device)
    z = torch.randn(N, 3, dtype=torch.float64, device=device, requires_grad=True)
    loadings = torch.randn(G, 3, dtype=torch.float64, device=device, requires_grad=True)
    support = None
    if sparse:  # features of several, one and no factor
        support = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
        support = support.to(device)
    leaves = [z, loadings, *decoder.parameters(), *likelihood.parameters()]
    streamed = decoder.observe(z, loadings, likelihood, batch, support).log_prob(batch.x)
    dense = likelihood(decoder(z, loadings, support), batch).log_prob(batch.x)
    torch.testing.assert_close(streamed, dense, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(1, 2, N, dtype=torch.float64, device=device)
    options = {"allow_unused": True, "materialize_grads": True}
    for w in (torch.ones_like(weight), weight):
        found = torch.autograd.grad(streamed @ w, leaves, retain_graph=True, **options)
        expected = torch.autograd.grad(dense @ w, leaves, retain_graph=True, **options)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MASKABLE)
def test_losses_and_posteriors_of_models_ignore_what_is_not_observed(name):
    results = []
    for hidden in (0.0, 1.0):
        torch.manual_seed(0)
        model, batch = MODELS[name](), batch_for(name)
        mask = random_mask(*batch.x.shape)
        seen = batch._replace(x=torch.where(mask, batch.x, hidden), mask=mask)
        torch.manual_seed(2)
        model.initialize(seen, 40)
        torch.manual_seed(3)
        model.zero_grad()
        loss = MeanFieldELBO().differentiable_loss(model.model, model.guide, seen, 40)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([loss.detach(), posterior(model, seen)["z"].mean, *gradients])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


@pytest.mark.parametrize("name", MASKABLE)
def test_models_train_and_predict_with_gaps(name):
    torch.manual_seed(0)
    model, batch = MODELS[name](), batch_for(name)
    mask = random_mask(*batch.x.shape)
    seen = batch._replace(x=torch.where(mask, batch.x, math.nan), mask=mask)
    data = ArrayData.of(seen)
    history = fit(model, data, max_epochs=3, batch_size=16, heldout=data, progress=False)
    assert all(math.isfinite(r.loss) for r in history.records)
    draws = predictive_draws(model, batch, 2, local="observed", observed=data.batch())
    for draw in draws:
        assert draw.replicate().shape == batch.x.shape
        assert draw.likelihood(batch.x).log_prob(batch.x).isfinite().all()


def test_exact_posterior_and_evidence_equal_textbook_formulas_row_by_row():
    torch.manual_seed(3)
    model = FactorAnalysis(5, 2).double()
    x, mask = torch.randn(9, 5, dtype=torch.float64), random_mask(9, 5, 0.4)
    mask[0], mask[1] = False, True
    with torch.no_grad():
        model.loadings.normal_()
        model.intercept.normal_()
        model.likelihood.log_scale.normal_()
        w, center = model.loadings.numpy(), model.intercept.numpy()
        noise = model.likelihood.scale.numpy() ** 2
        law, evidence = model.exact_posterior(x, mask), model.log_marginal_likelihood(x, mask)
        complete = model.exact_posterior(x), model.log_marginal_likelihood(x)
    for i in range(9):
        seen = mask[i].numpy()
        total = w[seen] @ w[seen].T + np.diag(noise[seen])
        gain = w[seen].T @ np.linalg.inv(total)
        residual = x[i].numpy()[seen] - center[seen]
        assert law.mean[i].numpy() == pytest.approx(gain @ residual, abs=1e-10)
        assert law.covariance_matrix[i].numpy() == pytest.approx(
            np.eye(2) - gain @ w[seen], abs=1e-10
        )
        if seen.any():
            exact = stats.multivariate_normal(center[seen], total).logpdf(x[i].numpy()[seen])
            assert evidence[i].item() == pytest.approx(exact, rel=1e-10)
    assert evidence[0].item() == 0.0
    torch.testing.assert_close(law.mean[1], complete[0].mean[1])
    torch.testing.assert_close(evidence[1], complete[1][1])


@pytest.fixture(scope="module")
def gappy():
    """A factor model fitted to data of which a fifth is missing."""
    truth = simulate.factor_analysis(400, 10, 2, seed=1)
    mask = random_mask(400, 10, 0.2, seed=2)
    torch.manual_seed(0)
    model = FactorAnalysis(10, 2)
    fit(
        model,
        ArrayData(truth.x, mask=mask),
        max_epochs=2000,
        batch_size=400,
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-2, fused=True),
        schedule=cosine,
        progress=False,
        device="cpu",
    )
    return model, truth.x, mask


def test_a_fit_to_data_with_gaps_predicts_them(gappy):
    model, x, mask = gappy
    with torch.no_grad():
        seen = Batch(torch.where(mask, x, 0.0), mask=mask)
        predicted = model.decode(model.exact_posterior(seen.x, mask).mean)
        guided = model.decode(posterior(model, seen)["z"].mean)
    hidden = ~mask
    spread = (x - x.mean(0))[hidden].square().mean()
    noise = model.likelihood.scale.square().detach().expand_as(x)[hidden].mean()
    error = (x - predicted)[hidden].square().mean()
    assert error < 1.5 * noise
    assert error < 0.6 * spread
    assert error < (x - guided)[hidden].square().mean() < 0.7 * spread  # one map for all rows


def test_importance_sampling_with_gaps_equals_the_exact_evidence(gappy):
    model, x, mask = gappy
    batch = Batch(torch.where(mask, x, 0.0)[:50], mask=mask[:50])
    estimate = log_predictive_density(model, batch, n_samples=400, seed=2)
    exact = model.log_marginal_likelihood(batch.x, batch.mask)
    assert (estimate - exact).abs().mean() < 0.1  # not exact: the guide is one map for all rows
    assert estimate.mean() < exact.mean() + 0.05
    draws = predictive_draws(model, batch, 1, scoring="marginal", n_samples=400)
    law = draws.reference.likelihood(batch.x)
    assert (law.log_prob(batch.x) - exact).abs().mean() < 0.1


def test_moments_of_columns_are_those_of_the_observed_entries():
    x = torch.tensor([[1.0, 5.0], [3.0, math.nan], [5.0, math.nan]])
    mask = torch.tensor([[True, False], [True, False], [False, False]])
    spread, center = std_mean(x, mask)
    assert spread.tolist() == [1.0, 0.0]
    assert center.tolist() == [2.0, 0.0]


def test_masked_moments_and_draws_are_those_of_all_features():
    normal = torch.distributions.Normal(torch.arange(6.0).view(2, 3), 2.0)
    law = MaskedFeatures(torch.distributions.Independent(normal, 1), torch.zeros(2, 3).bool())
    assert torch.equal(law.mean, normal.mean)
    assert torch.equal(law.variance, normal.variance)
    assert law.log_prob(torch.ones(2, 3)).tolist() == [0.0, 0.0]
    assert law.sample((20_000,)).mean(0) == pytest.approx(normal.mean, abs=0.08)


def test_data_with_gaps_keep_them_in_subsets():
    x, mask = torch.randn(6, 3), random_mask(6, 3)
    data = ArrayData(x, mask=mask)
    index = torch.tensor([4, 1])
    for batch in (
        data.batch(index),
        data.subset(index).batch(),
        ArrayData.of(data.batch()).batch(index),
    ):
        assert torch.equal(batch.mask, mask[index])
        assert torch.equal(batch.x, torch.where(mask, x, 0.0)[index])
    assert torch.equal(data.batch().mask, mask)


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(6, 2).bool(), r"torch.bool with shape \(6, 2\)"),
        (torch.ones(6, 3), r"torch.float32 with shape \(6, 3\)"),
    ],
)
def test_wrong_masks_are_refused(mask, got):
    with pytest.raises(ValueError, match=rf"mask must be boolean .* \(6, 3\), got {got}"):
        ArrayData(torch.randn(6, 3), mask=mask)


def test_likelihoods_that_are_no_product_over_features_refuse_masks():
    model = VAE(6, 2, n_hidden=8, likelihood=MultinomialLikelihood(6))
    data = ArrayData(torch.ones(5, 6), mask=random_mask(5, 6))
    with pytest.raises(ValueError, match="is not a product over features and takes no batch.mask"):
        fit(model, data, max_epochs=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("scoring", ["inferred", "marginal"])
def test_checks_of_masked_cells_are_calibrated(scoring):
    """Known parameters, 800 of 4000 cells masked; residuals at E[z] or standardised by Var(x)."""
    torch.manual_seed(0)
    model = FactorAnalysis(20, 3).double().eval()
    with torch.no_grad():
        model.loadings.normal_()
        model.likelihood.log_scale.zero_()
    rejected = 0  # n_obs below: parameters that are known
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        z, noise = (torch.randn(200, k, generator=generator).double() for k in (3, 20))
        x = (model.decode(z) + noise).detach()
        heldout = mask_entries((200, 20), 0.2, seed).heldout
        seen = ArrayData(x, mask=~heldout).batch()
        draws = predictive_draws(
            model, Batch(x), 79, local="observed", observed=seen, scoring=scoring, seed=seed
        )
        cells, x_new = masked_draws(draws, heldout), x[heldout].unsqueeze(1)
        result = pop_pc(cells, x_new, discrepancies.chi_square, seed=seed, n_obs=10**6)
        assert result.local == "observed"
        rejected += int(result.p_two_sided <= 0.05)
    assert rejected <= 13  # .05 and four standard errors
