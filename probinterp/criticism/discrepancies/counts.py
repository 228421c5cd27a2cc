"""Statistics of counts, and of other non-negative data: zeros, dispersion, depth."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy
from probinterp.criticism.discrepancies.moments import column_variance, log_totals
from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.tiles import row_tiles


@discrepancy(axis="feature")
def feature_variance(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Variance of each feature over units, divisor N.

    .. math:: d_j(x) = \frac1N \sum_i (x_{ij} - \bar x_{\cdot j})^2

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Shape (G,), >= 0; exactly 0 for constant features and for a single unit.
    """
    return column_variance(x)


@discrepancy(axis="feature")
def zero_fraction(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Share of zeros in each feature, :math:`\frac1N \#\{i: x_{ij} = 0\}`.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Shape (G,), in [0, 1] in steps of 1/N: ties are the rule.
    """
    zeros = x.new_zeros(x.shape[1])
    for rows in row_tiles(x):
        zeros = zeros + (rows == 0).sum(0)
    return zeros / len(x)


@discrepancy(axis="feature")
def index_of_dispersion(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Variance of each feature over its mean, the Fano factor.

    .. math:: d_j(x) = \frac{\mathrm{var}_i(x_{ij})}{\bar x_{\cdot j}}

    About 1 for Poisson counts with equal rates, above for over-dispersed ones.

    Parameters
    ----------
    x
        Counts, or other data with positive means, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Shape (G,), divisor N; 0 for constant features, those without a count included, and
        infinite for others of mean 0.
    """
    variance = column_variance(x)
    return torch.where(variance == 0, 0.0, variance / x.mean(0))


def library_size(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Spread of the library sizes: standard deviation over units of the log row total.

    .. math:: d(x) = \mathrm{sd}_i \log\Big(1 + \sum_j x_{ij}\Big)

    The logarithm keeps a few very deep cells from deciding. Replicates share the size factors of
    the held-out cells, so this asks whether the depth left over after them is modelled.

    Parameters
    ----------
    x
        Counts, or other data with non-negative row totals, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Scalar >= 0 (divisor N); 0 for equal totals, NaN if a row total is negative.
    """
    return log_totals(x).std(correction=0)


def mean_variance_trend(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Slope of log variance on log mean across features, by least squares.

    .. math:: d(x) = \frac{\sum_j (a_j - \bar a)(b_j - \bar b)}{\sum_j (a_j - \bar a)^2}, \quad
        a_j = \log \bar x_{\cdot j}, \quad b_j = \log \mathrm{var}_i(x_{ij})

    1 for Poisson counts, towards 2 for counts with constant over-dispersion. Meant for counts:
    features with mean <= 0 or without variance are left out.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Scalar; 0 when fewer than two features with different means are left.
    """
    centre, variance = x.mean(0), column_variance(x)
    used = ~((centre <= 0) | (variance == 0))
    weight = used.to(x.dtype) / used.sum().clamp(min=1)
    a = torch.where(used, centre, 1.0).log()
    b = torch.where(used, variance, 1.0).log()
    a, b = a - weight @ a, b - weight @ b
    spread = weight @ a.square()
    negligible = spread <= torch.finfo(x.dtype).eps ** 2
    return torch.where(negligible, 0.0, weight @ (a * b) / torch.where(negligible, 1.0, spread))
