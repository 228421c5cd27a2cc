"""Synthetic counts that resemble those of platelets of several disease groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probinterp.simulate.batches import BatchEffects, batch_centres
from probinterp.simulate.links import N_LINKS
from probinterp.simulate.studies import HIGHEST_AMPLITUDE, LOWEST_AMPLITUDE
from probinterp.simulate.study_layout import (
    DATA,
    MORE,
    TRUTH,
    block_and_gate,
    per_study,
    signed_uniform,
    stream,
)
from probinterp.simulate.study_process import CountNoise, StudyProcess

GROUP_SIZES = (24, 38, 38, 55, 40, 35)
LIBRARY_MEDIAN, LIBRARY_SCALE = 1.9e6, 0.7
# log mean counts of 2,741 well measured genes (GSE68086) at the median library: skewed to the right
LOWEST_LEVEL, LEVEL_SHAPE, LEVEL_SCALE = 2.8, 3.3, 0.7
DISPERSION_SCALE = 0.4  # log sd of r between genes
SMALLEST_SUPPORT, LARGEST_SUPPORT = 30, 80
ANCHORS = 2
BATCH_SPREAD = 0.3


class PlateletTruth(NamedTuple):
    """Synthetic counts of several groups in technical batches, and what made them.

    Attributes
    ----------
    x
        Counts, (N, G).
    study
        Group of each observation, (N,), int64; observations are sorted by group.
    nuisance
        Technical batch of each observation, (N,), int64.
    z
        Factors, (N, K); exactly zero where a group does not have the factor.
    batch_activity
        Activity of the batch factor, (N,), which is no column of ``z``.
    library_size
        Sequencing depth that the mean counts are proportional to, (N,). The counts of an
        observation do not add up to it.
    size_factor
        Library size over the median of its law, (N,).
    activity
        Means of the factors in the groups, (M, K).
    process
        The law of the data without batches.
    batches
        What the batches do.
    """

    x: Tensor
    study: Tensor
    nuisance: Tensor
    z: Tensor
    batch_activity: Tensor
    library_size: Tensor
    size_factor: Tensor
    activity: Tensor
    process: StudyProcess
    batches: BatchEffects

    @property
    def support(self) -> Tensor:
        """Which genes each factor reaches, (G, K) boolean."""
        return self.process.support

    @property
    def loadings(self) -> Tensor:
        """Amplitudes of the factors in the log means of the genes, (G, K)."""
        return self.process.loadings

    @property
    def block(self) -> Tensor:
        """Group that a factor belongs to, -1 for shared, (K,)."""
        return self.process.block

    @property
    def gate(self) -> Tensor:
        """Which factors a group has, (M, K) boolean."""
        return self.process.gate

    @property
    def batch_support(self) -> Tensor:
        """Which genes the batch factor reaches, (G,) boolean."""
        return self.batches.loadings != 0

    @property
    def design(self) -> Tensor:
        """Number of observations of each group in each batch, (M, T), int64."""
        n_groups, n_batches = len(self.gate), len(self.batches.centre)
        return one_hot(self.study, n_groups).T @ one_hot(self.nuisance, n_batches)

    @property
    def mean(self) -> Tensor:
        """Means of the counts given factors, batches and library sizes, (N, G)."""
        predictor = self.process.predictor(self.z, self.study)
        predictor = predictor + self.batches.predictor(self.nuisance, self.batch_activity)
        return self.size_factor.unsqueeze(1) * predictor.exp()

    def more(self, n_obs: int | Sequence[int], seed: int) -> PlateletTruth:
        """New observations of the same truth, in the same batches.

        Parameters
        ----------
        n_obs
            Number of new observations of every group, or one for each.
        seed
            Seed of the generator.
        """
        return _observed(self.process, self.batches, self.activity, n_obs, stream(seed, MORE))


def platelet_like(
    n_obs: int | Sequence[int] = GROUP_SIZES,
    n_features: int = 1000,
    n_shared: int = 5,
    n_specific: int | Sequence[int] = 1,
    *,
    n_studies: int = 6,
    n_batches: int = 3,
    confounded: float = 0.0,
    log_effect: float = 0.35,
    batch_effect: float = 0.35,
    batch_shift: float = 0.1,
    study_shift: float = 0.2,
    activity_shift: float = 0.0,
    inverse_dispersion: float = 5.0,
    seed: int = 0,
) -> PlateletTruth:
    r"""Synthetic counts of several disease groups, with technical batches that may follow them.

    .. math::
        x_{ij} \sim \mathrm{NB}(s_i e^{\eta_{ij}}, r_j), \quad
        \eta_{ij} = \ell_{m_i j} + \sum_k w_{jk} f_{jk}(z_{ik}) + c_i v_j + b_{t_i j}

    Library sizes are log-normal with median 1.9 million and log standard deviation 0.7; mean
    counts spread over genes as in a filtered matrix of platelets, and nothing else is taken from
    real data. Each factor, the batch factor c too, reaches 30 to 80 genes, two of them alone.
    Links f are those of :func:`multistudy`, and the batch factor is linear.

    Parameters
    ----------
    n_obs
        Number of observations of each group, or one for all.
    n_features
        Number of genes, G.
    n_shared
        Number of factors that all groups have.
    n_specific
        Number of factors of every single group, or one for each.
    n_studies
        Number of groups, M.
    n_batches
        Number of technical batches, T.
    confounded
        Share of the observations of a group that lie in its home batch (that of group m is
        m modulo T), beyond an even spread: 0 for batches crossed with groups, 1 for groups nested
        in batches, where groups of different batches cannot be compared.
    log_effect
        Scale of the effects of factors on log means; their sizes are this times U(1.5, 3).
    batch_effect
        The same for the batch factor; 0 for none.
    batch_shift
        Standard deviation of the shifts of single genes in single batches.
    study_shift
        Standard deviation of the levels of a gene between groups.
    activity_shift
        Mean of the first shared factor in the first group; all other means are 0. A true
        difference of activity between groups.
    inverse_dispersion
        Median of the inverse dispersions r of the genes.
    seed
        Seed of the generator.

    Raises
    ------
    ValueError
        If the numbers of groups, observations, genes or factors do not fit together, there are
        fewer than two batches, ``confounded`` lies outside [0, 1], or ``activity_shift`` has no
        shared factor to move.
    """
    if n_batches < 2 or not 0 <= confounded <= 1:
        raise ValueError(
            "n_batches must be at least 2 and confounded must lie in [0, 1], "
            f"got {n_batches} and {confounded}."
        )
    if activity_shift and n_shared < 1:
        raise ValueError("activity_shift needs a shared factor, got n_shared=0.")
    source = stream(seed, TRUTH)
    block, gate = block_and_gate(n_shared, n_specific, n_studies)
    support = _supports(n_features, len(block) + 1, source)
    amplitude = signed_uniform(support.shape, LOWEST_AMPLITUDE, HIGHEST_AMPLITUDE, source)
    loadings = support * amplitude
    link = torch.randint(N_LINKS, (n_features, len(block)), generator=source)
    level = _levels(n_features, source)
    level = level + study_shift * torch.randn(n_studies, n_features, generator=source)
    r = inverse_dispersion * (DISPERSION_SCALE * torch.randn(n_features, generator=source)).exp()
    noise = CountNoise(r, LIBRARY_SCALE)
    process = StudyProcess(block, gate, log_effect * loadings[:, :-1], link, level, noise)
    shift = batch_shift * torch.randn(n_batches, n_features, generator=source)
    batches = BatchEffects(
        batch_centres(n_batches), BATCH_SPREAD, batch_effect * loadings[:, -1], shift, confounded
    )
    activity = torch.zeros(gate.shape)
    activity[0, 0] = activity_shift  # shared factors come first
    return _observed(process, batches, activity, n_obs, stream(seed, DATA))


def _supports(n_features: int, n_columns: int, source: torch.Generator) -> Tensor:
    n_anchors = ANCHORS * n_columns
    if n_features < n_anchors + LARGEST_SUPPORT:
        raise ValueError(
            f"{n_columns} factors, that of batches among them, need "
            f"{n_anchors + LARGEST_SUPPORT} genes, got {n_features}."
        )
    order = torch.randperm(n_features, generator=source)
    anchors, others = order[:n_anchors].view(n_columns, ANCHORS), order[n_anchors:]
    sizes = torch.randint(
        SMALLEST_SUPPORT, LARGEST_SUPPORT + 1, (n_columns,), generator=source
    ).tolist()
    support = torch.zeros(n_features, n_columns, dtype=torch.bool)
    for column, size in enumerate(sizes):
        chosen = torch.randperm(len(others), generator=source)[: size - ANCHORS]
        support[anchors[column], column] = True
        support[others[chosen], column] = True
    return support


def _levels(n_features: int, source: torch.Generator) -> Tensor:
    shape = torch.full((n_features,), LEVEL_SHAPE)
    return LOWEST_LEVEL + LEVEL_SCALE * torch._standard_gamma(shape, generator=source)


def _observed(
    process: StudyProcess,
    batches: BatchEffects,
    activity: Tensor,
    n_obs: int | Sequence[int],
    source: torch.Generator,
) -> PlateletTruth:
    sizes = per_study(n_obs, len(process.gate), "n_obs", least=1)
    study = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    z = process.codes(study, source) + activity[study]
    nuisance = batches.assign(sizes, source)
    batch_activity = batches.activity(nuisance, source)
    predictor = process.predictor(z, study) + batches.predictor(nuisance, batch_activity)
    x, size_factor = process.observe(predictor, study, source)
    assert size_factor is not None  # counts have them
    library = LIBRARY_MEDIAN * size_factor
    return PlateletTruth(
        x, study, nuisance, z, batch_activity, library, size_factor, activity, process, batches
    )
