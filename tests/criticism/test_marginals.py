import numpy as np
import pyro.distributions as pyro_dist
import pytest
import torch
from scipy import stats
from torch import distributions as dist

from probinterp.criticism import FunctionDraw, discrepancies
from probinterp.criticism.marginals import cumulative, marginals, mid_pit

RATE, COUNT, P = 3.0, 7.0, 0.3
COUNTS = [-1.0, 0.0, 1.0, 2.0, 6.0, 7.0, 40.0]
REALS = [-2.5, -0.1, 0.0, 0.4, 0.9, 3.0]
LAWS = {  # law of torch, the same in scipy, where to compare
    "Poisson": (lambda t: dist.Poisson(t(RATE)), stats.poisson(RATE), COUNTS),
    "NegativeBinomial": (
        lambda t: dist.NegativeBinomial(t(2.5), t(P)),
        stats.nbinom(2.5, 1 - P),
        COUNTS,
    ),
    "NegativeBinomial of pyro": (
        lambda t: pyro_dist.NegativeBinomial(t(2.5), logits=t(1.2)),
        stats.nbinom(2.5, 1 - 1 / (1 + np.exp(-1.2))),
        COUNTS,
    ),
    "Binomial": (lambda t: dist.Binomial(t(COUNT), t(P)), stats.binom(COUNT, P), COUNTS),
    "Bernoulli": (lambda t: dist.Bernoulli(t(P)), stats.bernoulli(P), COUNTS),
    "Geometric": (lambda t: dist.Geometric(t(P)), stats.geom(P, loc=-1), COUNTS),
    "Normal": (lambda t: dist.Normal(t(0.5), t(2.0)), stats.norm(0.5, 2), REALS),
    "StudentT": (lambda t: dist.StudentT(t(4.0), t(0.5), t(2.0)), stats.t(4, 0.5, 2), REALS),
    "Beta": (lambda t: dist.Beta(t(2.0), t(3.0)), stats.beta(2, 3), REALS),
    "Gamma": (lambda t: dist.Gamma(t(2.0), t(3.0)), stats.gamma(2, scale=1 / 3), REALS[3:]),
    "LogNormal": (
        lambda t: dist.LogNormal(t(0.2), t(0.5)),
        stats.lognorm(0.5, 0, np.exp(0.2)),
        REALS[3:],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAWS)
def test_distribution_function_equals_scipy(name, dtype, device):
    make, reference, points = LAWS[name]
    x = torch.tensor([points], dtype=dtype, device=device)
    law = make(lambda number: torch.full_like(x, number))
    value = cumulative(law, x)
    assert value.dtype == dtype
    assert value.device == x.device
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert value[0].tolist() == pytest.approx(reference.cdf(points), abs=tolerance)


@pytest.mark.parametrize("name", LAWS)
def test_integral_transform_is_half_way_up_the_step_of_a_count(name):
    make, reference, points = LAWS[name]
    upper = {"Bernoulli": 1, "Beta": 1, "Binomial": COUNT}.get(name, np.inf)
    inside = [x for x in points if (0 < x < 1 or x.is_integer()) and 0 <= x <= upper]
    x = torch.tensor([inside], dtype=torch.float64)
    value = mid_pit(dist.Independent(make(lambda number: torch.full_like(x, number)), 1), x)
    below = reference.cdf(np.array(inside) - 1) if hasattr(reference.dist, "pmf") else None
    at = reference.cdf(inside)
    expected = at if below is None else (at + below) / 2
    assert value[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_integral_transform_of_large_counts_keeps_its_precision():
    x = torch.tensor([[1e6, 1e6 + 1000]])
    law = dist.Independent(dist.Poisson(torch.full_like(x, 1e6)), 1)
    reference = stats.poisson(1e6)
    expected = [reference.cdf(k) - reference.pmf(k) / 2 for k in (10**6, 10**6 + 1000)]
    assert mid_pit(law, x.double())[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("low_rank", [False, True])
def test_marginals_of_a_multivariate_normal(low_rank):
    factor, diagonal = torch.randn(4, 2).double(), torch.rand(4).double() + 0.5
    covariance, mean = factor @ factor.mT + diagonal.diag(), torch.randn(5, 4).double()
    law = dist.MultivariateNormal(mean, covariance)
    if low_rank:
        law = dist.LowRankMultivariateNormal(mean, factor, diagonal)
    x = torch.randn(5, 4).double()
    expected = stats.norm(mean.numpy(), np.sqrt(covariance.diag().numpy()))
    assert np.allclose(marginals(law).log_prob(x), expected.logpdf(x.numpy()), atol=1e-12)
    assert np.allclose(mid_pit(law, x), expected.cdf(x.numpy()), atol=1e-12)


def test_marginals_of_a_mixture_average_those_of_its_components():
    weights, rates = torch.tensor([0.2, 0.8]).double(), torch.rand(3, 2, 4).double() * 5 + 1
    law = dist.MixtureSameFamily(
        dist.Categorical(weights.expand(3, 2)), dist.Independent(dist.Poisson(rates), 1)
    )
    x = torch.poisson(rates[:, 0])
    one, other = (stats.poisson(rates[:, k].numpy()) for k in range(2))
    density = 0.2 * one.pmf(x.numpy()) + 0.8 * other.pmf(x.numpy())
    below = 0.2 * one.cdf(x.numpy()) + 0.8 * other.cdf(x.numpy())
    assert np.allclose(marginals(law).log_prob(x), np.log(density), atol=1e-12)
    assert np.allclose(mid_pit(law, x), below - density / 2, atol=1e-12)
    assert torch.equal(marginals(law).mean, law.mean)
    assert torch.equal(marginals(law).variance, law.variance)


def test_a_distribution_may_bring_its_own_marginals():
    class Own(dist.Distribution):
        arg_constraints = {}

        def marginals(self):
            return dist.Normal(torch.zeros(2, 3), 1.0)

    x = torch.zeros(2, 3)
    assert (mid_pit(Own(torch.Size([2]), torch.Size([3])), x) == 0.5).all()


class Counts(dist.Distribution):
    """Poisson counts that are scored feature by feature."""

    arg_constraints = {}
    support = dist.constraints.independent(dist.constraints.nonnegative_integer, 1)

    def __init__(self, rate):
        self.law = dist.Poisson(rate)
        super().__init__(rate.shape[:1], rate.shape[1:], validate_args=False)

    @property
    def mean(self):
        return self.law.mean

    @property
    def variance(self):
        return self.law.variance

    def feature_log_prob(self, value):
        return self.law.log_prob(value)


def test_a_distribution_may_score_its_features_one_by_one():
    x = torch.tensor([[0.0, 3.0], [2.0, 1.0]])
    counts, plain = Counts(torch.full_like(x, 2.0)), dist.Poisson(torch.full_like(x, 2.0))
    law = marginals(counts)
    assert torch.equal(law.log_prob(x), plain.log_prob(x))
    assert torch.equal(law.mean, plain.mean)
    assert torch.equal(law.variance, plain.variance)
    with pytest.raises(TypeError, match="function of Counts is not known.*feature_cdf"):
        mid_pit(counts, x)
    counts.feature_cdf = lambda value: cumulative(plain, value)
    assert torch.equal(mid_pit(counts, x), mid_pit(dist.Independent(plain, 1), x))


def test_uniformity_is_the_kolmogorov_statistic_of_scipy():
    x = torch.randn(20, 3, dtype=torch.float64)
    law = dist.Independent(dist.Normal(torch.full_like(x, 0.3), 1.2), 1)
    value = discrepancies.pit_uniformity(x, FunctionDraw(law.sample, lambda data: law))
    expected = stats.kstest(x.numpy().ravel(), stats.norm(0.3, 1.2).cdf).statistic
    assert value.item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("size", "fails"), [(20.0, False), (0.5, True)])
def test_uniformity_of_counts_separates_overdispersion_from_a_correct_model(size, fails):
    law = dist.Independent(dist.Poisson(torch.full((500, 2), 4.0)), 1)
    wide = dist.NegativeBinomial(torch.full((500, 2), size), torch.tensor(4 / (4 + size)))
    draw = FunctionDraw(law.sample, lambda data: law)
    replicated = torch.stack([discrepancies.pit_uniformity(law.sample(), draw) for _ in range(99)])
    x = wide.sample() if fails else law.sample()
    share = (replicated >= discrepancies.pit_uniformity(x, draw)).float().mean().item()
    assert (share == 0) == fails


def test_a_likelihood_without_marginals_is_named():
    law = dist.Dirichlet(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"marginals of the likelihood, and Dirichlet does not"):
        discrepancies.pit_uniformity(law.sample(), FunctionDraw(law.sample, lambda data: law))


def test_a_law_without_distribution_function_is_named():
    law = dist.Independent(dist.VonMises(torch.zeros(2, 3), torch.ones(2, 3)), 1)
    with pytest.raises(TypeError, match="distribution function of VonMises is not known"):
        mid_pit(law, torch.zeros(2, 3))


def test_a_law_without_support_is_named():
    class Odd(dist.Distribution):
        arg_constraints = {}

        def cdf(self, value):
            return value

    law = Odd(torch.Size([2, 3]), validate_args=False)
    with pytest.raises(TypeError, match="Odd does not say whether it is discrete"):
        mid_pit(dist.Independent(law, 1, validate_args=False), torch.zeros(2, 3))
