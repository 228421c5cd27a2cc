import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from probinterp.counts import (
    MultinomialCounts,
    NegativeBinomial,
    RoundedLogNormal,
    _dense_log_prob,
)
from probinterp.criticism.marginals import cumulative

N, G = 7, 11


def negative_binomial_log_pmf(log_mean, r, x):
    """Sixty digits, from the float inputs as they are."""
    with mpmath.workdps(60):
        mean, r, x = mpmath.exp(mpmath.mpf(log_mean)), mpmath.mpf(r), mpmath.mpf(x)
        value = mpmath.loggamma(x + r) - mpmath.loggamma(r) - mpmath.loggamma(x + 1)
        return float(value + x * mpmath.log(mean / (r + mean)) - r * mpmath.log1p(mean / r))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_dispersions_and_counts(dtype, device):
    """Each entry alone in its row, so that nothing hides behind larger terms."""
    grid = torch.cartesian_prod(
        torch.tensor([-9.0, -1.3, 0.4, 6.0, 13.5]),
        torch.tensor([1e-3, 0.1, 1.7, 1e3, 1e6]),
        torch.tensor([0.0, 1.0, 2.0, 37.0, 1e4, 1e6]),
    ).to(dtype)
    log_mean, r, x = grid.T.unsqueeze(-1)
    value = NegativeBinomial(log_mean.to(device), r.to(device)).log_prob(x.to(device))
    expected = [negative_binomial_log_pmf(*row) for row in grid.tolist()]
    np.testing.assert_allclose(value.tolist(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(G,), (1,), (N, G), (N, 1), (2, 1, G)])
def test_gradients_of_the_negative_binomial(shape, device):
    x = torch.poisson(torch.full((N, G), 0.7)).double().to(device)
    log_mean = torch.randn(2, N, G, dtype=torch.float64, device=device, requires_grad=True)
    r = (torch.rand(shape, dtype=torch.float64) * 3 + 0.1).to(device).requires_grad_()

    def log_prob(log_mean, r):
        return NegativeBinomial(log_mean, r).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (log_mean, r))


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_sparse_path_equals_the_dense_one(density):
    x = torch.poisson(torch.full((N, G), 2.0)) + 1
    x = x * (torch.rand(N, G) < density)
    log_mean, r = torch.randn(N, G, requires_grad=True), (torch.rand(G) + 0.2).requires_grad_()
    weight = torch.randn(N)
    sparse = NegativeBinomial(log_mean, r).log_prob(x)
    dense = _dense_log_prob(log_mean, r, x).sum(-1).float()
    torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad((sparse * weight).sum(), (log_mean, r)),
        torch.autograd.grad((dense * weight).sum(), (log_mean, r)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_shapes_broadcast(device):
    log_mean = torch.randn(3, N, G, dtype=torch.float64, device=device)
    r = torch.tensor(1.5, dtype=torch.float64, device=device, requires_grad=True)
    x = torch.poisson(torch.ones(N, G)).double().to(device)
    observed = NegativeBinomial(log_mean, r)
    value = observed.log_prob(x)
    mean = log_mean.exp().cpu().numpy()
    expected = stats.nbinom(1.5, 1.5 / (1.5 + mean)).logpmf(x.cpu().numpy()).sum(-1)
    np.testing.assert_allclose(value.tolist(), expected, rtol=1e-10)
    torch.testing.assert_close(observed.expand((2, 3, N)).log_prob(x)[1], value)
    assert observed.sample((2,)).shape == (2, 3, N, G)
    step = 1e-6
    slope = NegativeBinomial(log_mean, r + step).log_prob(x) - value
    (gradient,) = torch.autograd.grad(value.sum(), r)
    assert gradient.item() == pytest.approx(slope.sum().item() / step, rel=1e-4)


def test_gradient_of_the_multinomial(device):
    logits = torch.randn(N, G, dtype=torch.float64, device=device, requires_grad=True)
    x = torch.poisson(torch.ones(N, G)).double().to(device)

    def log_prob(logits):
        return MultinomialCounts(logits, x.sum(-1)).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (logits,))


@pytest.mark.parametrize("n_features", [1, 2, 3, 8])
def test_multinomial_draws_for_any_number_of_features(n_features):
    total = torch.tensor([0.0, 1.0, 100_000.0])
    logits = torch.zeros(3, n_features)
    logits[:, 0] = -200.0 if n_features > 1 else 0.0  # impossible, and not by rounding
    draws = MultinomialCounts(logits, total).sample((50,))
    assert (draws.sum(-1) == total).all()
    assert n_features == 1 or (draws[..., 0] == 0).all()
    if n_features > 1:
        share = draws[:, 2, 1:].mean(0) / 100_000
        torch.testing.assert_close(
            share, torch.full_like(share, 1 / (n_features - 1)), rtol=0.01, atol=0
        )


def test_values_outside_the_support_are_refused():
    observed = NegativeBinomial(torch.zeros(N, G), torch.ones(G), validate_args=True)
    for bad in (-1.0, 0.5):
        with pytest.raises(ValueError, match="within the support"):
            observed.log_prob(torch.full((N, G), bad))
    with pytest.raises(ValueError, match="inverse_dispersion"):
        NegativeBinomial(torch.zeros(N, G), -torch.ones(G), validate_args=True)


def test_marginals_score_and_accumulate_like_scipy():
    """Negative binomial, multinomial and rounded log-normal entries one by one."""
    value = torch.tensor([[0.0, 3.0, 7.0]], dtype=torch.float64)
    log_mean, r = torch.tensor([[0.1, 1.0, 2.0]]).double(), torch.tensor([0.5, 2.0, 30.0]).double()
    negative = NegativeBinomial(log_mean, r).marginals()
    p = r / (r + log_mean.exp())
    expected = stats.nbinom.logpmf(value, r, p)
    np.testing.assert_allclose(negative.log_prob(value), expected, rtol=1e-10)
    np.testing.assert_allclose(cumulative(negative, value), stats.nbinom.cdf(value, r, p))
    law = MultinomialCounts(torch.tensor([[0.0, 1.0, 2.0]]).double(), torch.tensor([10.0]).double())
    share = law.logits.exp()
    binomial = law.marginals()
    np.testing.assert_allclose(binomial.log_prob(value), stats.binom.logpmf(value, 10, share))
    np.testing.assert_allclose(cumulative(binomial, value), stats.binom.cdf(value, 10, share))
    np.testing.assert_allclose(binomial.mean, law.mean)
    rounded = RoundedLogNormal(log_mean, torch.ones(3).double(), torch.tensor([2.0]).double())
    grid = torch.arange(8.0, dtype=torch.float64).unsqueeze(1).expand(8, 3)
    mass = rounded.feature_log_prob(grid).exp().cumsum(0)
    np.testing.assert_allclose(rounded.feature_cdf(grid), mass, rtol=1e-9)
