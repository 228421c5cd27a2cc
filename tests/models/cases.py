"""One row per model: a factory and a batch that it can be fitted to."""

import torch

from probinterp.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    RoundedLogNormalLikelihood,
)
from probinterp.models import (
    VAE,
    ActivationBatch,
    Batch,
    CorrelatedNormalPrior,
    CrossLayerTranscoder,
    FactorAnalysis,
    LatentDirichletAllocation,
    LowRankNormalPrior,
    MultiStudyFactorAnalysis,
    MultiStudySparseVAE,
    SparseVAE,
)
from probinterp.models.activation_priors import (
    AbsTopK,
    BernoulliGaussian,
    BernoulliTruncatedNormal,
    HardConcrete,
    JumpReLU,
    ReLUTopK,
    Truncated,
)
from probinterp.models.decoder_priors import GroupSpikeSlabLasso
from probinterp.models.token_noise import DiagonalNoise, StudentTNoise

MODELS = {
    "CrossLayerTranscoder": lambda: CrossLayerTranscoder(2, 3, 8, activation=ReLUTopK(2)),
    "CrossLayerTranscoder-rows": lambda: CrossLayerTranscoder(
        2, 3, 8, activation=AbsTopK(2), skip=True, layout="source"
    ),
    "CrossLayerTranscoder-jump": lambda: CrossLayerTranscoder(
        2, 3, 8, activation=JumpReLU(target_l0=2.0), cross_layer=False
    ),
    "CrossLayerTranscoder-gates": lambda: CrossLayerTranscoder(
        2, 3, 8, activation=BernoulliTruncatedNormal(2.0)
    ),
    "CrossLayerTranscoder-signed": lambda: CrossLayerTranscoder(
        2, 3, 8, activation=BernoulliGaussian(2.0), noise=StudentTNoise(), elbo="meanfield"
    ),
    "CrossLayerTranscoder-few": lambda: CrossLayerTranscoder(
        2,
        3,
        8,
        activation=Truncated(BernoulliGaussian(2.0), 4),
        noise=DiagonalNoise(),
        decoder_prior=GroupSpikeSlabLasso(),
        layout="source",
    ),
    "CrossLayerTranscoder-concrete": lambda: CrossLayerTranscoder(
        2, 3, 8, activation=HardConcrete(2.0)
    ),
    "FactorAnalysis": lambda: FactorAnalysis(6, 2),
    "FactorAnalysis-counts": lambda: FactorAnalysis(6, 2, likelihood=RoundedLogNormalLikelihood(6)),
    "LatentDirichletAllocation": lambda: LatentDirichletAllocation(6, 2),
    "MultiStudyFactorAnalysis": lambda: MultiStudyFactorAnalysis(6, 2, 1, 1),
    "MultiStudySparseVAE": lambda: MultiStudySparseVAE(6, 2, 1, 2, n_hidden=8),
    "MultiStudySparseVAE-counts": lambda: MultiStudySparseVAE(
        6,
        1,
        (1, 2),
        2,
        n_hidden=8,
        n_nuisance_levels=3,
        likelihood=NegativeBinomialLikelihood(6, n_studies=2, standardize=True),
    ),
    "VAE": lambda: VAE(6, 2, n_hidden=8),
    "VAE-beta": lambda: VAE(6, 2, n_hidden=8, beta=4.0),
    "VAE-counts": lambda: VAE(6, 2, n_hidden=8, likelihood=NegativeBinomialLikelihood(6)),
    "SparseVAE": lambda: SparseVAE(6, 3, n_hidden=8, spike=20.0, slab=1.0),
    "SparseVAE-released": lambda: SparseVAE(
        6, 3, n_hidden=8, spike=10.0, slab=1.0, objective="released"
    ),
    "SparseVAE-counts": lambda: SparseVAE(
        6, 3, n_hidden=8, likelihood=NegativeBinomialLikelihood(6)
    ),
    "SparseVAE-binary": lambda: SparseVAE(6, 3, n_hidden=8, likelihood=BernoulliLikelihood(6)),
    "SparseVAE-ratings": lambda: SparseVAE(6, 3, n_hidden=8, likelihood=MultinomialLikelihood(6)),
    "SparseVAE-correlated": lambda: SparseVAE(
        6, 3, n_hidden=8, prior=LowRankNormalPrior(3), likelihood=GaussianLikelihood(6)
    ),
    "SparseVAE-components": lambda: SparseVAE(6, 3, n_hidden=8, start="components"),
    "SparseVAE-full": lambda: SparseVAE(
        6, 3, n_hidden=8, full_covariance=True, prior=CorrelatedNormalPrior(3)
    ),
    "SparseVAE-pruned": lambda: SparseVAE(6, 3, n_hidden=8, prune_after=0.5),
}


def batch_for(name, n=40, seed=0):
    """Counts for every model: they are valid observations of each likelihood but Bernoulli's."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((n, 6), 3.0), generator=generator)
    x = (counts > 2).float() if name.endswith("binary") else counts
    size_factor = 0.5 + torch.rand(n, generator=generator)
    if name.startswith("CrossLayer"):
        return ActivationBatch(x.view(n, 2, 3), torch.randn(n, 2, 3, generator=generator))
    if not name.startswith("MultiStudySparse"):
        return Batch(x, size_factor=size_factor)
    return Batch(x, torch.arange(n) % 2, size_factor, nuisance=torch.arange(n) % 3)
