import numpy as np
import pytest
import torch
from scipy import stats

from probinterp.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
)
from probinterp.models.base import Batch

N, G = 6, 5
SIZE_FACTOR = torch.tensor([0.5, 0.8, 1.0, 1.1, 1.5, 2.0], dtype=torch.float64)
COUNTS = torch.tensor(np.random.default_rng(0).poisson(2.0, (N, G)), dtype=torch.float64)
ETA = torch.tensor(np.random.default_rng(1).normal(size=(N, G)))


def gaussian(likelihood):
    return stats.norm(ETA.numpy(), likelihood.scale.detach().numpy())


def negative_binomial(likelihood):
    mean = (SIZE_FACTOR[:, None] * (likelihood.intercept + ETA).exp()).detach().numpy()
    r = likelihood.inverse_dispersion.detach().numpy()
    return stats.nbinom(r, r / (r + mean))


def bernoulli(likelihood):
    return stats.bernoulli(ETA.sigmoid().numpy())


SEPARABLE = {
    "gaussian": (GaussianLikelihood, gaussian, COUNTS - 1.3, "logpdf"),
    "negative binomial": (NegativeBinomialLikelihood, negative_binomial, COUNTS, "logpmf"),
    "bernoulli": (BernoulliLikelihood, bernoulli, COUNTS.clamp(max=1), "logpmf"),
}


def make(kind, device):
    likelihood = kind(G).double()
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter += torch.linspace(-1, 1, G)
    return likelihood.to(device)


@pytest.mark.parametrize("row", SEPARABLE.values(), ids=SEPARABLE)
def test_density_and_moments_are_those_of_scipy(row, device):
    kind, reference, x, density = row
    likelihood = make(kind, device)
    batch = Batch(x.to(device), None, SIZE_FACTOR.to(device))
    observed, expected = likelihood(ETA.to(device), batch), reference(likelihood.cpu())
    assert (observed.batch_shape, observed.event_shape) == ((N,), (G,))
    log_density = getattr(expected, density)(x.numpy())
    np.testing.assert_allclose(observed.log_prob(batch.x).tolist(), log_density.sum(1), rtol=1e-10)
    np.testing.assert_allclose(observed.mean.tolist(), expected.mean(), rtol=1e-10)
    np.testing.assert_allclose(observed.variance.tolist(), expected.var(), rtol=1e-10)


@pytest.mark.parametrize("row", SEPARABLE.values(), ids=SEPARABLE)
def test_draws_have_the_moments_of_scipy(row, device):
    kind, reference, x, _ = row
    likelihood = make(kind, device)
    batch = Batch(x.to(device), None, SIZE_FACTOR.to(device))
    draws = likelihood(ETA.to(device), batch).sample((20_000,)).cpu()
    assert_moments(draws, reference(likelihood.cpu()))


def assert_moments(draws, expected):
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - torch.as_tensor(expected.mean())).abs() < 5 * error).all()
    square = (draws - draws.mean(0)).square()
    error = square.std(0) / len(draws) ** 0.5
    assert ((square.mean(0) - torch.as_tensor(expected.var())).abs() < 5 * error).all()


@pytest.mark.parametrize("row", SEPARABLE.values(), ids=SEPARABLE)
@pytest.mark.parametrize("features", [slice(1, 4), torch.tensor([3, 0])], ids=["slice", "index"])
def test_blocks_of_features_add_up(row, features, device):
    kind, _, x, _ = row
    likelihood = make(kind, device)
    batch = Batch(x.to(device), None, SIZE_FACTOR.to(device))
    rest = torch.tensor([j for j in range(G) if j not in torch.arange(G)[features]])
    total = likelihood(ETA.to(device), batch).log_prob(batch.x)
    parts = [
        likelihood(ETA.to(device)[:, part], batch, part).log_prob(batch.x[:, part])
        for part in (features, rest)
    ]
    assert likelihood.separable
    torch.testing.assert_close(sum(parts), total)


def test_multinomial_is_that_of_scipy(device):
    likelihood, batch = MultinomialLikelihood(G), Batch(COUNTS.to(device))
    observed = likelihood(ETA.to(device), batch)
    expected = [
        stats.multinomial(int(x.sum()), p)
        for x, p in zip(COUNTS.numpy(), ETA.softmax(1).numpy(), strict=True)
    ]
    log_density = [row.logpmf(x) for row, x in zip(expected, COUNTS.numpy(), strict=True)]
    np.testing.assert_allclose(observed.log_prob(batch.x).tolist(), log_density, rtol=1e-10)
    covariance = np.stack([row.cov() for row in expected])
    mean = COUNTS.sum(1, keepdim=True) * ETA.softmax(1)
    np.testing.assert_allclose(observed.mean.tolist(), mean, rtol=1e-10)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(observed.variance.tolist(), variance, rtol=1e-10)

    draws = observed.sample((20_000,)).cpu()
    assert (draws.sum(-1) == COUNTS.sum(-1)).all()
    centred = draws - mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    error = products.std(0) / 20_000**0.5
    assert ((products.mean(0) - torch.as_tensor(covariance)).abs() <= 5 * error).all()
    assert (centred.mean(0).abs() <= 5 * draws.std(0) / 20_000**0.5).all()


def test_multinomial_needs_all_features():
    likelihood, batch = MultinomialLikelihood(G), Batch(COUNTS)
    assert not likelihood.separable
    with pytest.raises(ValueError, match="the softmax needs all 5 features, got eta for 2"):
        likelihood(ETA[:, :2], batch, slice(0, 2))


@pytest.mark.parametrize("use", ["forward", "encoder_input", "initialize"])
def test_negative_binomial_names_the_missing_size_factor(use):
    likelihood, batch = NegativeBinomialLikelihood(G), Batch(COUNTS)
    arguments = (ETA, batch) if use == "forward" else (batch,)
    with pytest.raises(ValueError, match=r"needs batch.size_factor, shape \(B,\), got None"):
        getattr(likelihood, use)(*arguments)


def test_log_mean_of_the_negative_binomial_is_bounded():
    likelihood = NegativeBinomialLikelihood(G)
    observed = likelihood(torch.full((N, G), 1e4), Batch(COUNTS, None, SIZE_FACTOR))
    torch.testing.assert_close(observed.mean, torch.full((N, G), 15.0).double().exp())


def test_gaussian_starts_at_a_share_of_the_standard_deviation():
    x = COUNTS.clone()
    x[:, 2] = 4.0  # does not vary
    likelihood = GaussianLikelihood(G).double()
    likelihood.initialize(Batch(x))
    expected = (0.3 * x.std(0, correction=0)).clamp_min(1e-3)
    torch.testing.assert_close(likelihood.scale, expected)
    seen = likelihood.encoder_input(Batch(x))
    torch.testing.assert_close(seen.mean(0), torch.zeros(G).double())
    spread = torch.ones(G).double().index_fill_(0, torch.tensor(2), 0.0)
    torch.testing.assert_close(seen.std(0, correction=0), spread)


def test_negative_binomial_starts_at_the_moments():
    torch.manual_seed(0)
    mean, r = torch.tensor([0.5, 3.0, 20.0]), torch.tensor([0.5, 2.0, 5.0])
    rate = torch.distributions.Gamma(r, r / mean).sample((40_000,))
    x = torch.cat([torch.poisson(rate), torch.zeros(40_000, 1), torch.ones(40_000, 1)], 1)
    likelihood = NegativeBinomialLikelihood(G)
    likelihood.initialize(Batch(x, None, torch.ones(40_000)))
    torch.testing.assert_close(likelihood.intercept[:3].exp(), mean, rtol=0.03, atol=0)
    torch.testing.assert_close(likelihood.inverse_dispersion[:3], r, rtol=0.1, atol=0)
    assert likelihood.intercept[3].exp().item() == pytest.approx(1e-4)
    assert likelihood.inverse_dispersion[4].item() == pytest.approx(100.0)


def test_what_the_encoder_sees():
    batch = Batch(COUNTS, None, SIZE_FACTOR)
    seen = NegativeBinomialLikelihood(G).encoder_input(batch)
    torch.testing.assert_close(seen, (1 + COUNTS / SIZE_FACTOR[:, None]).log())
    assert BernoulliLikelihood(G).encoder_input(batch) is COUNTS
    counts = COUNTS.index_fill(0, torch.tensor(1), 0.0)
    share = MultinomialLikelihood(G).encoder_input(Batch(counts)).sum(1)
    assert share.tolist() == pytest.approx([1, 0, 1, 1, 1, 1])


def test_likelihoods_remember_their_arguments():
    arguments = {"n_features": G, "n_studies": 1, "standardize": False}
    expected = {"class": "NegativeBinomialLikelihood", "arguments": arguments}
    assert NegativeBinomialLikelihood(G).configuration == expected
