"""How well a model found what was planted: supports, factors, covariances."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SHARED = -1  # block of the columns that all studies share; m for those of study m


class SupportScores(NamedTuple):
    """Agreement of found with true supports; 1 is perfect.

    Attributes
    ----------
    consensus
        Jaccard indices of supports matched one to one, over the larger number of columns.
    relevance
        Average over found columns of the largest Jaccard index with a true one.
    recovery
        Average over true columns of the largest Jaccard index with a found one.
    """

    consensus: float
    relevance: float
    recovery: float


def support_scores(
    found: Tensor,
    true: Tensor,
    *,
    found_block: Tensor | None = None,
    true_block: Tensor | None = None,
) -> SupportScores:
    r"""Consensus, relevance and recovery of the supports of factors.

    .. math:: J_{kl} = \frac{|F_k \cap T_l|}{|F_k \cup T_l|}, \quad
        \frac{\max_\pi \sum_k J_{k \pi(k)}}{\max(K_F, K_T)}, \quad
        \frac{1}{K_F} \sum_k \max_l J_{kl}, \quad \frac{1}{K_T} \sum_l \max_k J_{kl}

    The matching :math:`\pi` is the best one of columns with columns. Columns without a feature do
    not count.

    Parameters
    ----------
    found, true
        Supports, boolean, (G, K) and (G, K').
    found_block, true_block
        Blocks of the columns, (K,) and (K',). With them columns of different blocks have a
        Jaccard index of zero: a factor in the wrong block is not found.

    Returns
    -------
    SupportScores
        All 0 where nothing is found. Where there is nothing to find either they are NaN; where
        there is nothing to find but something is found, consensus and relevance are 0.

    Raises
    ------
    ValueError
        If the supports have different numbers of features, or blocks of only one are given.

    References
    ----------
    FABIA: factor analysis for bicluster acquisition (Hochreiter et al., 2010), consensus score;
    Spike-and-slab Lasso biclustering (Moran, Rockova and George, 2021), relevance and recovery.
    Both compare sets of cells; ours are sets of features.
    """
    if found.shape[0] != true.shape[0]:
        raise ValueError(
            f"supports must have the same features, got {found.shape[0]} and {true.shape[0]}."
        )
    jaccard = _jaccard(found, true)
    if (found_block is None) != (true_block is None):
        raise ValueError("blocks must be given for both supports or for neither.")
    if found_block is not None and true_block is not None:
        jaccard = jaccard * (found_block.unsqueeze(1) == true_block)
    return _scores(jaccard[found.bool().any(0)][:, true.bool().any(0)])


def support_scores_by_block(
    found: Tensor, true: Tensor, found_block: Tensor, true_block: Tensor
) -> dict[int, SupportScores]:
    """Scores of each block by itself: -1 for the shared one, m for that of study m.

    Parameters
    ----------
    found, true
        Supports, boolean, (G, K) and (G, K').
    found_block, true_block
        Blocks of the columns, (K,) and (K',).
    """
    blocks = sorted({*found_block.tolist(), *true_block.tolist()})
    return {b: support_scores(found[:, found_block == b], true[:, true_block == b]) for b in blocks}


class MatchedCorrelation(NamedTuple):
    """Correlations of each true factor with codes, absolute, (K',) each.

    Specific factors are looked at within their own study, shared ones over all observations (with
    codes of a study's block: within that study).

    Attributes
    ----------
    block
        Block of each true factor: -1 for shared, m for study m.
    matched
        With a code of its own block, every code matched to one factor at most.
    shared
        Largest with a shared code.
    specific
        Largest with a specific code: of its own study, for shared factors of any.
    """

    block: Tensor
    matched: Tensor
    shared: Tensor
    specific: Tensor


def matched_correlation(
    z: Tensor, z_true: Tensor, block: Tensor, block_true: Tensor, study: Tensor
) -> MatchedCorrelation:
    """Correlations between codes and the factors that made the data, block by block.

    Parameters
    ----------
    z, z_true
        Codes (N, K) and true factors (N, K').
    block, block_true
        Their blocks, (K,) and (K',): -1 for shared, m for study m.
    study
        Study of each observation, (N,).

    Returns
    -------
    MatchedCorrelation
        A code or factor that does not vary has correlation 0; so has one without counterpart.

    Raises
    ------
    ValueError
        If the numbers of observations differ, or a column has no block.
    """
    if len({len(z), len(z_true), len(study)}) > 1:
        raise ValueError(
            "codes, factors and studies must be of the same observations, got "
            f"{len(z)}, {len(z_true)} and {len(study)}."
        )
    if (len(block), len(block_true)) != (z.shape[1], z_true.shape[1]):
        raise ValueError(
            f"every column needs a block, got {len(block)} for {z.shape[1]} codes and "
            f"{len(block_true)} for {z_true.shape[1]} factors."
        )
    matched, shared, specific = (torch.zeros(len(block_true), dtype=torch.float64) for _ in "abc")
    everywhere = _correlation(z, z_true).abs()  # (K, K')
    blocks = sorted({*block.tolist(), *block_true.tolist()})
    for b in blocks:
        rows = slice(None) if b == SHARED else study == b
        r = everywhere if b == SHARED else _correlation(z[rows], z_true[rows]).abs()
        own = (block_true == b).nonzero().flatten()
        pairs = _best_matching(r[block == b][:, own])
        matched[own[pairs[1]]] = r[block == b][:, own][pairs]
        shared[own] = _largest(r[block == SHARED][:, own])
        if b != SHARED:
            specific[own] = _largest(r[block == b][:, own])
            common = (block_true == SHARED).nonzero().flatten()
            here = _largest(r[block == b][:, common])
            specific[common] = torch.maximum(specific[common], here)
    return MatchedCorrelation(block_true, matched, shared, specific)


def block_accuracy(found: MatchedCorrelation, *, threshold: float = 0.9) -> float:
    """Share of specific factors that a code of their own block follows better than shared ones.

    With a correlation of at least ``threshold``. NaN where there is no specific factor.
    """
    chosen = found.block != SHARED
    right = (found.specific >= threshold) & (found.specific > found.shared)
    return right[chosen].double().mean().item() if chosen.any() else math.nan


def double_coded(found: MatchedCorrelation, *, threshold: float = 0.6) -> Tensor:
    """Which true factors both a shared and a specific code follow, boolean (K',)."""
    return (found.shared >= threshold) & (found.specific >= threshold)


def rv_coefficient(a: Tensor, b: Tensor) -> float:
    r"""Similarity of two covariance matrices whatever their scale, in [0, 1].

    .. math:: \mathrm{RV} = \frac{\mathrm{tr}(A B)}{\sqrt{\mathrm{tr}(A^2)\,\mathrm{tr}(B^2)}}

    Parameters
    ----------
    a, b
        Symmetric matrices, (G, G).

    References
    ----------
    A unifying tool for linear multivariate statistical methods: the RV-coefficient (Robert and
    Escoufier, 1976).
    """
    a, b = _same_shape(a, b)
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def relative_frobenius(estimate: Tensor, truth: Tensor) -> float:
    r"""Error :math:`\|\hat\Sigma - \Sigma\|_F / \|\Sigma\|_F` of a covariance matrix (G, G)."""
    estimate, truth = _same_shape(estimate, truth)
    return ((estimate - truth).norm() / truth.norm()).item()


def _jaccard(found: Tensor, true: Tensor) -> Tensor:
    f, t = found.bool().double(), true.bool().double()
    both = f.mT @ t
    either = f.sum(0).unsqueeze(1) + t.sum(0) - both
    return both / either.clamp_min(1.0)


def _scores(jaccard: Tensor) -> SupportScores:
    n_found, n_true = jaccard.shape
    if n_found == 0 or n_true == 0:
        wrong = math.nan if n_found == n_true else 0.0
        return SupportScores(wrong, wrong, math.nan if n_true == 0 else 0.0)
    consensus = jaccard[_best_matching(jaccard)].sum().item() / max(n_found, n_true)
    return SupportScores(consensus, jaccard.amax(1).mean().item(), jaccard.amax(0).mean().item())


def _best_matching(similarity: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _largest(r: Tensor) -> Tensor:
    """Largest entry of each column; 0 without rows."""
    return r.amax(0) if len(r) else r.new_zeros(r.shape[1])


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlations (K, K') of the columns of two matrices; 0 for those that do not vary."""
    if len(a) < 2:
        return torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    a, b = (v.double() - v.double().mean(0) for v in (a, b))
    scale = a.norm(dim=0).unsqueeze(1) * b.norm(dim=0)
    return torch.where(scale > 0, a.mT @ b / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)


def _same_shape(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"expected two matrices of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    return a.double(), b.double()
