import pytest
import torch

from probinterp import fit, log_predictive_density
from probinterp.inference import ArrayData, refined_locals
from probinterp.models import Batch, FactorAnalysis, LatentDirichletAllocation, SparseVAE


@pytest.fixture(scope="module")
def factor_analysis():
    torch.manual_seed(0)
    model = FactorAnalysis(6, 2)
    x = torch.randn(200, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(200, 6)
    fit(model, ArrayData(x), max_epochs=30, progress=False)
    with torch.no_grad():
        model.encoder.mul_(0.5)  # an encoder that is wrong by half
        model.raw_scale.mul_(3.0)
    return model, Batch(x[:20])


def test_refined_posteriors_are_the_exact_ones(factor_analysis):
    model, batch = factor_analysis
    exact = model.exact_posterior(batch.x)
    law = refined_locals(model, batch, n_steps=600, learning_rate=0.02)["z"]
    sd = exact.variance.sqrt()
    assert ((law.mean - exact.mean) / sd).abs().mean() < 0.3  # noise of the last steps
    torch.testing.assert_close(law.variance.sqrt().mean(0), sd.mean(0), rtol=0.3, atol=0)
    assert all(p.requires_grad for p in model.parameters())


def test_refined_densities_come_close_to_the_exact_one(factor_analysis):
    model, batch = factor_analysis
    exact = model.log_marginal_likelihood(batch.x).detach()
    loose = log_predictive_density(model, batch, n_samples=20)
    tight = log_predictive_density(model, batch, n_samples=20, refine_steps=300)
    assert (exact - loose).mean() > 2 * (exact - tight).abs().mean()
    torch.testing.assert_close(tight, exact, atol=1.0, rtol=0)


def test_models_and_arguments_that_cannot_be_refined():
    batch = Batch(torch.ones(3, 6))
    with pytest.raises(TypeError, match="only normal posteriors"):
        refined_locals(LatentDirichletAllocation(6, 2), batch, n_steps=1)
    with pytest.raises(ValueError, match="refine_steps must not be negative, got -1"):
        log_predictive_density(SparseVAE(6, 2, n_hidden=8), batch, refine_steps=-1)
