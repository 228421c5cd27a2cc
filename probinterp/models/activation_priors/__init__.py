"""Priors and posteriors of a transcoder's codes, one file each."""

from probinterp.models.activation_priors.bernoulli_gaussian import BernoulliGaussian
from probinterp.models.activation_priors.bernoulli_truncated_normal import BernoulliTruncatedNormal
from probinterp.models.activation_priors.hard_concrete import HardConcrete
from probinterp.models.activation_priors.interface import ActivationPrior, CodeMoments
from probinterp.models.activation_priors.jump_relu import JumpReLU
from probinterp.models.activation_priors.top_k import AbsTopK, ReLUTopK
from probinterp.models.activation_priors.truncated import Truncated

__all__ = [
    "AbsTopK",
    "ActivationPrior",
    "BernoulliGaussian",
    "BernoulliTruncatedNormal",
    "CodeMoments",
    "HardConcrete",
    "JumpReLU",
    "ReLUTopK",
    "Truncated",
]
