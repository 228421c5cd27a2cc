"""Priors and posteriors of a transcoder's codes, one file each."""

from probinterp.models.activation_priors.interface import ActivationPrior, CodeMoments
from probinterp.models.activation_priors.jump_relu import JumpReLU
from probinterp.models.activation_priors.top_k import AbsTopK, ReLUTopK

__all__ = ["AbsTopK", "ActivationPrior", "CodeMoments", "JumpReLU", "ReLUTopK"]
