"""Whether the conditions hold under which sparse factors mean something."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REQUIRED_ANCHORS = 2


class AnchorReport(NamedTuple):
    """Anchor features of each factor.

    Attributes
    ----------
    anchors
        Indices of the features that depend on this factor alone, one tensor per factor.
    counts
        Number of anchors per factor, (K,).
    identified
        Whether a factor has at least two anchors, (K,) boolean.
    """

    anchors: tuple[Tensor, ...]
    counts: Tensor
    identified: Tensor


class CovarianceCondition(NamedTuple):
    r"""Comparison of every factor's variance with its covariances.

    Attributes
    ----------
    violated
        Whether some other factor has :math:`\mathrm{Cov}(z_k, z_l) > \mathrm{Var}(z_k)`, (K,).
    ratio
        :math:`\max_{l \ne k} |\mathrm{Cov}(z_k, z_l)| / \min(\mathrm{Var}_k, \mathrm{Var}_l)`,
        (K,); 0 for a single factor.
    """

    violated: Tensor
    ratio: Tensor


def anchor_report(support: Tensor) -> AnchorReport:
    """Features that load on a single factor, and the factors that have fewer than two.

    With at least two anchor features for every factor (known, or unknown together with the
    condition of :func:`covariance_condition`) the factors of a sparse decoder are identified up
    to their order and a transformation of each coordinate.

    Parameters
    ----------
    support
        Which features each factor reaches, (G, K) boolean, for example ``factors(...).support``.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 4.
    """
    if support.ndim != 2 or support.dtype != torch.bool:
        raise ValueError(
            f"support must be boolean with shape (G, K), got {support.dtype} with shape "
            f"{tuple(support.shape)}."
        )
    single = support & (support.sum(1, keepdim=True) == 1)
    anchors = tuple(column.nonzero().squeeze(1) for column in single.unbind(1))
    counts = single.sum(0)
    return AnchorReport(anchors, counts, counts >= REQUIRED_ANCHORS)


def covariance_condition(scores: Tensor) -> CovarianceCondition:
    """Check that no factor covaries with another more than it varies itself.

    Parameters
    ----------
    scores
        Factor scores, (N, K), N >= 2.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 4.
    """
    if scores.ndim != 2 or len(scores) < 2:
        raise ValueError(f"scores must have shape (N, K) with N >= 2, got {tuple(scores.shape)}.")
    covariance = torch.atleast_2d(scores.mT.cov())
    variance = covariance.diagonal()
    others = ~torch.eye(len(variance), dtype=torch.bool, device=scores.device)
    violated = ((covariance > variance.unsqueeze(1)) & others).any(1)
    smaller = torch.minimum(variance.unsqueeze(1), variance.unsqueeze(0))
    ratio = (covariance.abs() / smaller.clamp_min(torch.finfo(scores.dtype).tiny)) * others
    return CovarianceCondition(violated, ratio.max(1).values)
