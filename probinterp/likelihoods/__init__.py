"""Likelihoods of the observed features given the decoder's output eta."""

from probinterp.likelihoods.categories import BernoulliLikelihood, MultinomialLikelihood
from probinterp.likelihoods.counts import NegativeBinomialLikelihood, RoundedLogNormalLikelihood
from probinterp.likelihoods.gaussian import INITIAL_SCALE, GaussianLikelihood, chi2_quantile
from probinterp.likelihoods.interface import (
    ALL_FEATURES,
    Features,
    Likelihood,
    ObservedBatch,
    by_study,
)

__all__ = [
    "ALL_FEATURES",
    "INITIAL_SCALE",
    "BernoulliLikelihood",
    "Features",
    "GaussianLikelihood",
    "Likelihood",
    "MultinomialLikelihood",
    "NegativeBinomialLikelihood",
    "ObservedBatch",
    "RoundedLogNormalLikelihood",
    "by_study",
    "chi2_quantile",
]
