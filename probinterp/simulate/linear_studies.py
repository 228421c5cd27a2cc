"""Linear factors of several studies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probinterp.simulate.links import IDENTITY
from probinterp.simulate.studies import MultiStudyTruth, observed
from probinterp.simulate.study_layout import DATA, SHARED, TRUTH, block_and_gate, stream
from probinterp.simulate.study_process import GaussianNoise, StudyProcess

LOWEST_SHARED_LOADING = 0.6


def linear_multistudy(
    n_studies: int = 4,
    n_obs: int | Sequence[int] = (10, 15, 12, 14),
    n_shared: int = 3,
    n_specific: int | Sequence[int] = 1,
    *,
    n_features: int = 60,
    share: float = 1 / 3,
    seed: int = 0,
) -> MultiStudyTruth:
    r"""Linear factors that all studies share and linear factors of one study.

    .. math::
        x_i = \Phi f_i + \Lambda_{m_i} l_i + e_i, \quad
        \Sigma_m = \Phi\Phi^\top + \Lambda_m\Lambda_m^\top + \Psi_m

    The defaults are a scenario of the literature with fewer observations than features. A share
    of the entries of each loading matrix, at random places, is not zero: in :math:`\Phi` they have
    sizes from U(0.6, 1) and half of them are negative, in :math:`\Lambda_m` they come from
    U(-1, 1). The noise variances come from U(0, 1), for each study anew.

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
    n_features
        Number of features, G.
    share
        Share of the entries of a loading matrix that are not zero.
    seed
        Seed of the generator.

    Returns
    -------
    MultiStudyTruth
        Its ``loadings`` hold the columns of :math:`\Phi`, then those of each :math:`\Lambda_m`;
        ``covariance(m)`` is :math:`\Sigma_m` exactly.

    Raises
    ------
    ValueError
        If the numbers of studies, observations or factors do not fit together, or ``share`` lies
        outside (0, 1].

    References
    ----------
    Bayesian multistudy factor analysis for high-throughput biological data (De Vito, Bellio,
    Trippa and Parmigiani, 2021), first scenario of the simulations, which is ``sim_scenario1`` in
    the R package MSFA.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}.")
    source = stream(seed, TRUTH)
    block, gate = block_and_gate(n_shared, n_specific, n_studies)
    columns = [
        _loadings(n_features, int((block == m).sum()), share, m == SHARED, source)
        for m in range(SHARED, n_studies)
    ]
    loadings = torch.cat(columns, dim=1)
    variance = torch.rand(n_studies, n_features, generator=source)
    process = StudyProcess(
        block,
        gate,
        loadings,
        torch.full(loadings.shape, IDENTITY),
        torch.zeros_like(variance),
        GaussianNoise(variance.sqrt()),
    )
    return observed(process, n_obs, stream(seed, DATA))


def _loadings(
    n_features: int, n_columns: int, share: float, shared: bool, source: torch.Generator
) -> Tensor:
    n_loaded = round(share * n_features) * n_columns
    values = torch.rand(n_loaded, generator=source)
    if shared:
        values = LOWEST_SHARED_LOADING + (1 - LOWEST_SHARED_LOADING) * values
        values[: n_loaded // 2] *= -1  # the places are random
    else:
        values = 2 * values - 1
    entries = torch.zeros(n_features * n_columns)
    entries[torch.randperm(len(entries), generator=source)[:n_loaded]] = values
    return entries.view(n_features, n_columns)
