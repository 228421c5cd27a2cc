"""Finite mixtures with exact conjugate updates, to compare and to criticise."""

from probinterp.models.mixtures.gaussian import GaussianMixture, GaussianMixtureParameters
from probinterp.models.mixtures.mixture import Mixture
from probinterp.models.mixtures.multinomial import (
    MultinomialMixture,
    MultinomialMixtureParameters,
)
from probinterp.models.mixtures.parameters import MixtureDraw, MixtureDraws, MixtureParameters

__all__ = [
    "GaussianMixture",
    "GaussianMixtureParameters",
    "Mixture",
    "MixtureDraw",
    "MixtureDraws",
    "MixtureParameters",
    "MultinomialMixture",
    "MultinomialMixtureParameters",
]
