"""Whether p-values of images are uniform: Kolmogorov-Smirnov and Anderson-Darling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

RANKED = 2**22  # numbers that are ranked at a time


@dataclass(frozen=True, eq=False)
class ImageChecks:
    r"""Predictive p-values of every image, and tests of their uniformity; C cells, I images.

    Parameters
    ----------
    discrepancy
        Name of the discrepancy.
    labels
        Names of the cells.
    p_value
        Share of replicates at least as extreme, shape (I, C).
    p_rank
        Randomised rank among the replicates, uniform for exchangeable data, shape (I, C).
    ks, ad
        Kolmogorov-Smirnov and Anderson-Darling statistics of ``p_rank``, shape (C,).
    ks_p, ad_p
        Their p-values for independent uniform numbers, shape (C,). Images are independent given
        the residual model; where that was estimated from no more images than are compared, all
        share its error and these p-values are too small.
    ks_p_replicated, ad_p_replicated
        Rank of the statistics among those of the replicates, each taken for the data in turn: these
        p-values count what the images share. Resolution 1 / (S + 1).
    """

    discrepancy: str
    labels: tuple[str, ...]
    p_value: Tensor
    p_rank: Tensor
    ks: Tensor
    ad: Tensor
    ks_p: Tensor
    ad_p: Tensor
    ks_p_replicated: Tensor
    ad_p_replicated: Tensor


def image_checks(
    discrepancy: str, labels: tuple[str, ...], heldout: Tensor, replicated: Tensor, uniform: Tensor
) -> ImageChecks:
    """p-values of every image and tests of their uniformity.

    Parameters
    ----------
    discrepancy, labels
        Names of the discrepancy and of its cells.
    heldout
        Values of the data, shape (I, C).
    replicated
        Values of the replicates, shape (S, I, C).
    uniform
        Numbers that break ties, shape (I, C).
    """
    rows = torch.cat([heldout.unsqueeze(0), replicated]).double()  # (S + 1, I, C)
    ranks = _rank_p(rows, uniform)
    statistics = {"ks": ks_statistic(ranks), "ad": ad_statistic(ranks)}  # (S + 1, C)
    ks, ad = statistics["ks"][0], statistics["ad"][0]
    among = {name: (rows >= rows[0]).double().mean(0) for name, rows in statistics.items()}
    return ImageChecks(
        discrepancy,
        labels,
        (replicated >= heldout).double().mean(0),
        ranks[0],
        ks,
        ad,
        ks_p_value(ks, len(heldout)),
        ad_p_value(ad),
        among["ks"],
        among["ad"],
    )


def ks_statistic(p: Tensor) -> Tensor:
    r"""Kolmogorov-Smirnov distance from uniformity, over the axis before the last.

    .. math:: D = \max_i \max\big(\tfrac in - p_{(i)},\; p_{(i)} - \tfrac{i - 1}n\big)
    """
    ordered, n = p.sort(-2).values, p.shape[-2]
    steps = (torch.arange(n + 1, dtype=p.dtype, device=p.device) / n).unsqueeze(-1)
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(-2)


def ad_statistic(p: Tensor) -> Tensor:
    r"""Anderson-Darling distance from uniformity, over the axis before the last.

    .. math:: A^2 = -n - \frac1n \sum_{i=1}^n (2i - 1)
        \big(\log p_{(i)} + \log(1 - p_{(n + 1 - i)})\big)
    """
    ordered, n = p.sort(-2).values, p.shape[-2]
    tiny = torch.finfo(p.dtype).eps / 2
    ordered = ordered.clamp(tiny, 1 - tiny)
    weight = (2 * torch.arange(1, n + 1, dtype=p.dtype, device=p.device) - 1).unsqueeze(-1)
    logs = ordered.log() + (-ordered.flip(-2)).log1p()
    return -n - (weight * logs).sum(-2) / n


def ks_p_value(distance: Tensor, n: int) -> Tensor:
    """Exact p-values of Kolmogorov-Smirnov distances of n uniform numbers."""
    from scipy.stats import kstwo  # slow to import, seldom needed

    return torch.as_tensor(np.asarray(kstwo.sf(distance.cpu().numpy(), n)))


def ad_p_value(statistic: Tensor) -> Tensor:
    r"""Asymptotic p-values of Anderson-Darling statistics, good to .003 from n = 8 on.

    The limit law is that of :math:`\sum_{j \ge 1} \chi^2_{1,j} / (j (j + 1))`. Its distribution
    function is the series

    .. math:: \Pr(A^2 \le z) = \frac{\sqrt{2\pi}}z \sum_{j \ge 0} \binom{-1/2}{j} (4j + 1)
        \exp\Big(-\frac{(4j + 1)^2 \pi^2}{8z}\Big) \int_0^\infty
        \exp\Big(\frac z{8(w^2 + 1)} - \frac{(4j + 1)^2 \pi^2 w^2}{8z}\Big) dw

    References
    ----------
    Asymptotic theory of certain goodness of fit criteria based on stochastic processes (Anderson
    and Darling, 1952), section 4.
    """
    from scipy.special import binom  # slow to import, seldom needed

    z = statistic.double().cpu().numpy().reshape(-1, 1).clip(1e-3, 50)
    angle, weights = _quarter_turn()  # w = tan(angle)
    total = np.zeros(len(z))
    for j in range(16):
        rate = (4 * j + 1) ** 2 * np.pi**2 / (8 * z)
        logs = z / 8 * np.cos(angle) ** 2 - rate / np.cos(angle) ** 2  # the outer factor too
        inside = np.exp(logs) / np.cos(angle) ** 2 @ weights
        total += binom(-0.5, j) * (4 * j + 1) * inside
    below = np.sqrt(2 * np.pi) / z[:, 0] * total
    return torch.as_tensor((1 - below).clip(0, 1)).reshape(statistic.shape)


@cache
def _quarter_turn() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre quadrature from 0 to a right angle."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return (nodes + 1) * np.pi / 4, weights * np.pi / 4


def _rank_p(rows: Tensor, uniform: Tensor) -> Tensor:
    r"""Every row's p-value among all S + 1 rows, :math:`(\#_> + U \#_=) / (S + 1)`, itself counted.

    The numbers U of a replicate are those of the data: they would have to be drawn anew only if
    ties were common.
    """
    n_rows = len(rows)
    flat, numbers = rows.flatten(1), uniform.flatten().double()
    parts = []
    for block, u in zip(
        flat.split(max(1, RANKED // n_rows), dim=1),
        numbers.split(max(1, RANKED // n_rows)),
        strict=True,
    ):
        ordered = block.T.contiguous().sort(1).values
        values = block.T.contiguous()
        below = torch.searchsorted(ordered, values)
        upto = torch.searchsorted(ordered, values, right=True)
        above, tied = n_rows - upto, upto - below
        parts.append(((above + u.unsqueeze(1) * tied) / n_rows).T)
    return torch.cat(parts, 1).reshape(rows.shape)
