"""Data of several studies with factors that all share and factors of one study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from probinterp.simulate.links import N_LINKS
from probinterp.simulate.study_layout import (
    DATA,
    MORE,
    TRUTH,
    block_and_gate,
    per_study,
    signed_uniform,
    stream,
)
from probinterp.simulate.study_process import CountNoise, GaussianNoise, StudyProcess

LOWEST_AMPLITUDE, HIGHEST_AMPLITUDE = 1.5, 3.0
LEVEL_SCALE = 0.5  # log sd of the mean counts of features
LEVEL_DRAWS = 20_000


class MultiStudyTruth(NamedTuple):
    """Simulated observations of several studies, sorted by study, and what made them.

    Attributes
    ----------
    x
        Observations, (N, G).
    study
        Study of each observation, (N,), int64.
    z
        Factors, (N, K); exactly zero where a study does not have the factor.
    size_factor
        Relative library sizes of counts, (N,); None for normal observations.
    process
        The law of the data, of which more can be drawn.
    """

    x: Tensor
    study: Tensor
    z: Tensor
    size_factor: Tensor | None
    process: StudyProcess

    @property
    def support(self) -> Tensor:
        """Which features each factor reaches, (G, K) boolean."""
        return self.process.support

    @property
    def loadings(self) -> Tensor:
        """Amplitudes of the factors in the features, (G, K); zero outside the support."""
        return self.process.loadings

    @property
    def block(self) -> Tensor:
        """Study that a factor belongs to, -1 for shared, (K,)."""
        return self.process.block

    @property
    def gate(self) -> Tensor:
        """Which factors a study has, (M, K) boolean."""
        return self.process.gate

    @property
    def mean(self) -> Tensor:
        """Means of the observations given their factors and size factors, (N, G)."""
        predictor = self.process.predictor(self.z, self.study)
        if self.size_factor is None:
            return predictor
        return self.size_factor.unsqueeze(1) * predictor.exp()

    def covariance(self, study: int, n: int | None = None, seed: int = 0) -> Tensor:
        """Covariance of the observations of a study, (G, G), double precision.

        It is exact, and that of counts is theirs at size factor 1.

        Parameters
        ----------
        study
            Index of the study.
        n
            Number of draws of the factors for a Monte Carlo average instead, with the noise
            integrated out. It converges slowly for counts, whose means have heavy tails.
        seed
            Seed of the draws.
        """
        return self.process.covariance(study, n, seed)

    def more(self, n_obs: int | Sequence[int], seed: int) -> MultiStudyTruth:
        """New observations of the same truth; their numbers repeat none of the first ones.

        Parameters
        ----------
        n_obs
            Number of new observations of every study, or one for each.
        seed
            Seed of the generator.
        """
        return observed(self.process, n_obs, stream(seed, MORE))


def multistudy(
    n_studies: int = 3,
    n_obs: int | Sequence[int] = 200,
    n_shared: int = 3,
    n_specific: int | Sequence[int] = 1,
    *,
    features_per_factor: int = 8,
    n_two_parent: int = 6,
    noise: float = 0.5,
    likelihood: Literal["gaussian", "negative_binomial"] = "gaussian",
    log_effect: float = 0.35,
    mean_count: float = 43.0,
    inverse_dispersion: float = 5.0,
    library_scale: float = 0.3,
    seed: int = 0,
) -> MultiStudyTruth:
    r"""Nonlinear features of shared factors and factors of one study.

    .. math::
        x_{ij} = \sum_k w_{jk} f_{jk}(z_{ik}) + \sigma \epsilon_{ij}, \quad
        f_{jk} \in \{z,\ \sin 1.5 z,\ 1.5 \max(z, 0)\}, \quad |w_{jk}| \sim U(1.5, 3)

    Every factor has features of its own, in the order of the factors; the last features are sums
    over two factors drawn at random. A feature whose factors a study does not have is pure noise
    there. Counts are negative binomial with the same functions, scaled down, as effects on the
    log mean, and features that differ in their levels.

    Parameters
    ----------
    n_studies
        Number of studies, M.
    n_obs
        Number of observations of every study, or one for each.
    n_shared
        Number of factors that all studies have.
    n_specific
        Number of factors of every single study, or one for each.
    features_per_factor
        Features that depend on one given factor only, for each factor.
    n_two_parent
        Features that depend on two factors.
    noise
        Standard deviation of normal noise.
    likelihood
        ``"gaussian"`` or ``"negative_binomial"``; the support of a seed is the same.
    log_effect
        Factor by which effects on the log mean of counts are smaller than those on normal means.
    mean_count
        Mean of the counts over features, studies and library sizes.
    inverse_dispersion
        Inverse dispersion r of the counts; the variance is :math:`\mu + \mu^2/r`.
    library_scale
        Log standard deviation of the library sizes, whose median is 1.
    seed
        Seed of the generator.

    Raises
    ------
    ValueError
        If the numbers of studies, observations or factors do not fit together, a feature of two
        factors is asked of one factor, a scale or mean is out of range, or the likelihood is
        unknown.
    """
    if likelihood not in ("gaussian", "negative_binomial"):
        raise ValueError(
            f'likelihood must be "gaussian" or "negative_binomial", got {likelihood!r}.'
        )
    if noise < 0 or mean_count <= 0 or inverse_dispersion <= 0 or library_scale < 0:
        raise ValueError(
            "noise and library_scale must not be negative, mean_count and inverse_dispersion must "
            f"be positive, got {noise}, {library_scale}, {mean_count} and {inverse_dispersion}."
        )
    source = stream(seed, TRUTH)
    block, gate = block_and_gate(n_shared, n_specific, n_studies)
    support = _support(len(block), features_per_factor, n_two_parent, source)
    shape = (len(support), len(block))
    loadings = support * signed_uniform(shape, LOWEST_AMPLITUDE, HIGHEST_AMPLITUDE, source)
    link = torch.randint(N_LINKS, shape, generator=source)
    level = torch.zeros(n_studies, len(support))
    process = StudyProcess(
        block, gate, loadings, link, level, GaussianNoise(torch.full_like(level, noise))
    )
    if likelihood == "negative_binomial":
        spread = LEVEL_SCALE * torch.randn(len(support), generator=source)
        r = torch.full_like(spread, inverse_dispersion)
        process = process._replace(
            loadings=log_effect * loadings,
            level=spread.expand_as(level),
            noise=CountNoise(r, library_scale),
        )
        process = _with_mean(process, mean_count, library_scale, seed)
    return observed(process, n_obs, stream(seed, DATA))


def _support(
    n_factors: int, features_per_factor: int, n_two_parent: int, source: torch.Generator
) -> Tensor:
    if n_two_parent and n_factors < 2:
        raise ValueError(f"n_two_parent={n_two_parent} features need two factors, got one.")
    own = torch.eye(n_factors).repeat_interleave(features_per_factor, dim=0)
    both = torch.zeros(n_two_parent, n_factors)
    for row in both:
        row[torch.randperm(n_factors, generator=source)[:2]] = 1
    return torch.cat([own, both]).bool()


def _with_mean(
    process: StudyProcess, mean_count: float, library_scale: float, seed: int
) -> StudyProcess:
    """Move all levels alike so that the counts have the given mean."""
    studies = range(len(process.gate))
    means = [process.moments(m, LEVEL_DRAWS, seed)[0].mean() for m in studies]
    shift = math.log(mean_count) - float(torch.stack(means).mean().log()) - library_scale**2 / 2
    return process._replace(level=process.level + shift)


def observed(
    process: StudyProcess, n_obs: int | Sequence[int], source: torch.Generator
) -> MultiStudyTruth:
    """Draw observations of every study, in the order of the studies."""
    n_studies = len(process.gate)
    sizes = torch.tensor(per_study(n_obs, n_studies, "n_obs", least=1))
    study = torch.repeat_interleave(torch.arange(n_studies), sizes)
    z = process.codes(study, source)
    x, size_factor = process.observe(process.predictor(z, study), study, source)
    return MultiStudyTruth(x, study, z, size_factor, process)
