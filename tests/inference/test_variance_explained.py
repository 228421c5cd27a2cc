import math

import pytest
import torch
from pyro import distributions as dist
from torch import nn

from probinterp import simulate
from probinterp.counts import MultinomialCounts, NegativeBinomial, RoundedLogNormal
from probinterp.inference import ArrayData
from probinterp.inference.variance_explained import noise_variance, variance_explained
from probinterp.likelihoods import GaussianLikelihood, NegativeBinomialLikelihood
from probinterp.models import (
    Batch,
    LatentDirichletAllocation,
    MultiStudyFactorAnalysis,
    MultiStudySparseVAE,
    SparseVAE,
)


def linear_model():
    """Three features, one shared and one specific factor for each of two studies."""
    model = MultiStudyFactorAnalysis(3, 1, 1, 2)
    loadings = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    model.set_parameters(torch.zeros(2, 3), loadings, torch.tensor([[1.0, 1, 1], [2.0, 1, 1]]))
    return model


def data_of(model, n_obs, seed=1):  # not that of the draws, whose numbers would be the same
    generator = torch.Generator().manual_seed(seed)
    study = torch.arange(2).repeat_interleave(n_obs)
    z = torch.randn(2 * n_obs, 3, generator=generator) * model.gate[study]
    noise = torch.randn(2 * n_obs, 3, generator=generator) * model.likelihood.scale[study]
    return Batch((z @ model.loadings.mT + noise).detach(), study)


def test_shares_of_a_linear_model_are_those_of_its_covariance(device):
    model = linear_model().to(device)
    n_samples = 40_000
    found = variance_explained(model, data_of(linear_model(), n_samples), n_samples=n_samples)
    # study 0: 4 + 1 shared, 1 specific, 3 noise; study 1: 4 + 1 shared, 9 specific, 4 noise
    total = torch.tensor([9.0, 18.0], dtype=torch.float64)
    variances = torch.tensor([[5.0, 1.0, 3.0], [5.0, 9.0, 4.0]], dtype=torch.float64)
    # standard errors: about sqrt(2/S) of a variance for data and posterior each, 1 %
    assert found.total.tolist() == pytest.approx(total.tolist(), rel=0.03)
    assert (found.shares - variances / total.unsqueeze(1)).abs().max() < 0.015
    effects = torch.tensor([[5.0, 1.0, 0.0], [5.0, 0.0, 9.0]]) / total.unsqueeze(1)
    assert (found.factors - effects).abs().max() < 0.015
    assert found.factors[0, 2] == found.factors[1, 1] == 0
    assert found.shares.sum(1).tolist() == pytest.approx([1.0, 1.0])


class ExactCodes(nn.Module):
    """z is the first two features, without error; features depend on their sum or product."""

    def __init__(self, decode, block):
        super().__init__()
        self.likelihood = GaussianLikelihood(1)
        self.decode, self.block = decode, torch.tensor(block)

    def model(self, batch, n_total=None):
        raise NotImplementedError

    def guide(self, batch, n_total=None):
        import pyro

        with pyro.plate("obs", len(batch.x)):
            pyro.sample("z", dist.Delta(batch.x[:, :2], event_dim=1))


CROSS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


@pytest.mark.parametrize(
    ("decode", "x", "variances", "effects"),
    [
        # sum of uncorrelated codes of variance 4/3; noise variance 1
        (lambda z: z.sum(1, keepdim=True), CROSS, (4 / 3, 4 / 3, 1), (4 / 3, 4 / 3)),
        # a product is nobody's alone: halves
        (lambda z: z.prod(1, keepdim=True), CROSS, (2 / 3, 2 / 3, 1), (4 / 3, 4 / 3)),
        # equal codes 1 and -1: variance 4 (4/3), half of it each
        (
            lambda z: z.sum(1, keepdim=True),
            CROSS[[0, 0, 3, 3]],
            (8 / 3, 8 / 3, 1),
            (4 / 3, 4 / 3),
        ),
        # the second undoes half of the first: y = z_1 - z_2 / 2
        (
            lambda z: z[:, :1] - z[:, 1:] / 2,
            CROSS[[0, 0, 3, 3]],
            (1 / 3 / 2 + (4 / 3 - 1 / 3) / 2, 1 / 3 / 2 - (4 / 3 - 1 / 3) / 2, 1),
            (4 / 3, 1 / 3),
        ),
    ],
)
def test_split_of_blocks_computed_by_hand(decode, x, variances, effects):
    model = ExactCodes(decode, [-1, 0])
    found = variance_explained(model, Batch(x), n_samples=4)
    total = sum(variances)
    assert found.total.item() == pytest.approx(total)
    assert found.shares[0].tolist() == pytest.approx([v / total for v in variances])
    assert found.factors[0].tolist() == pytest.approx([v / total for v in effects])


def test_noise_of_every_likelihood():
    mean, r = torch.tensor([[0.5, 4.0]]), torch.tensor([2.0, 5.0])
    counts = noise_variance(NegativeBinomial(mean.log(), r))
    assert counts[0].tolist() == pytest.approx([math.log(1 + 2 + 0.5), math.log(1 + 0.25 + 0.2)])
    rounded = RoundedLogNormal(torch.zeros(1, 2), torch.tensor([0.5, 2.0]), torch.ones(1))
    assert noise_variance(rounded).tolist() == [[0.25, 4.0]]
    share = torch.tensor([[0.25, 0.75]])
    shares = noise_variance(MultinomialCounts(share.log(), torch.tensor([8.0])))
    assert shares[0].tolist() == pytest.approx([math.log(1 + 0.75 / 2), math.log(1 + 0.25 / 6)])
    binary = dist.Bernoulli(logits=torch.zeros(1, 2)).to_event(1)
    assert noise_variance(binary)[0].tolist() == pytest.approx([math.pi**2 / 3] * 2)
    normal = dist.Normal(torch.zeros(1, 2), torch.tensor([1.0, 3.0])).to_event(1)
    assert noise_variance(normal)[0].tolist() == [1.0, 9.0]


def test_log_variance_of_counts_is_near_the_truth():
    n_draws = 200_000
    law = NegativeBinomial(torch.tensor([40.0, 200.0]).log(), torch.tensor([5.0, 20.0]))
    logs = law.sample((n_draws,)).clamp_min(0.5).log()
    # log variance of a gamma with shape 5 is trigamma(5) = .22, of a log-normal log(1 + 1/5) = .18
    assert noise_variance(law).tolist() == pytest.approx(logs.var(0).tolist(), rel=0.25)


def test_counts_of_several_studies_and_a_model_without_blocks():
    truth = simulate.multistudy(n_obs=20, likelihood="negative_binomial")
    data = ArrayData(truth.x, truth.size_factor, truth.study)
    n_features = truth.x.shape[1]
    model = MultiStudySparseVAE(
        n_features, 2, 1, 3, n_hidden=8, likelihood=NegativeBinomialLikelihood(n_features)
    )
    model.initialize(data.batch(), len(data))
    found = variance_explained(model, data, n_samples=50)
    assert found.shares.shape == (3, 3)
    assert found.factors.shape == (3, 5)
    assert not found.factors[~model.gate].any()
    assert (found.factors[model.gate] > 0).all()
    again = variance_explained(model, data, n_samples=50)
    assert all(map(torch.equal, found, again))
    pooled = SparseVAE(n_features, 2, n_hidden=8)
    pooled.initialize(data.batch(), len(data))
    shares = variance_explained(pooled, data, n_samples=50).shares
    assert shares.shape == (3, 3)
    assert shares[:, 1].abs().max() < 1e-12
    assert variance_explained(pooled, Batch(truth.x), n_samples=50).shares.shape == (1, 3)


def test_what_cannot_be_taken_apart_is_refused():
    model = linear_model()
    data = data_of(model, 5)
    with pytest.raises(ValueError, match="n_samples must be 2 or more, got 1"):
        variance_explained(model, data, n_samples=1)
    with pytest.raises(ValueError, match="study 1 of 2 has no observation"):
        variance_explained(model, data.rows(slice(0, 5)))
    with pytest.raises(TypeError, match="LatentDirichletAllocation has no decode"):
        variance_explained(LatentDirichletAllocation(6, 2), Batch(torch.ones(4, 6)))
    with pytest.raises(TypeError, match="the noise of Gamma"):
        noise_variance(dist.Gamma(1.0, 1.0))
