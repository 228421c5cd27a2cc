r"""What to compare: pure functions of data ``x`` (N, G) and a draw, scalar or one per feature.

A *statistic* ignores the draw, a *discrepancy* uses it. With :math:`m_{ij}` and :math:`v_{ij}`
the mean and variance of the likelihood and
:math:`e_{ij} = (x_{ij} - m_{ij}) / \sqrt{v_{ij}}` the standardised residual:

================================  ====================  ==================  =====  ==============
name                              kind                  range               ties   large means
================================  ====================  ==================  =====  ==============
``mean_negative_log_likelihood``  discrepancy           real                no     bad fit
``chi_square``                    discrepancy           >= 0                no     bad fit
``residual_correlation``          discrepancy           [0, 1]              no     bad fit
``mean``                          statistic             real                count  larger values
``maximum``                       statistic             real                count  larger values
``quantile(q)``                   statistic             real                count  larger values
``library_size``                  statistic             >= 0                rare   uneven depth
``mean_variance_trend``           statistic             real                rare   steeper trend
``feature_variance``              statistic, (G,)       >= 0                count  over-dispersion
``zero_fraction``                 statistic, (G,)       [0, 1]              yes    more zeros
================================  ====================  ==================  =====  ==============

Large values of the first three mean bad fit, so misfit gives a small one-sided p; the others
have no bad side: read the two-sided p. "count" in the column of ties: ties are possible when the
data are discrete. All of them run in the dtype and on the device of ``x``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw


def mean_negative_log_likelihood(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Average over units of the negative log density.

    .. math:: d(x, \theta) = -\frac1N \sum_i \log p(x_i \mid z_i, \theta)

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood has batch shape (N,) and event shape (G,).

    Returns
    -------
    Tensor
        Scalar; any real number, ties have probability zero unless the data are discrete.

    Notes
    -----
    Whether z is integrated out or re-inferred from ``x`` is the draw's affair; it is the same
    for replicated and held-out data.
    """
    return -draw.likelihood(x).log_prob(x).mean()


def chi_square(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean square of the standardised residuals.

    .. math:: d(x, \theta) = \frac1{NG} \sum_{ij} \frac{(x_{ij} - m_{ij})^2}{v_{ij}}

    About 1 for a correct model whose z is not inferred from ``x``; below 1 when it is.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives mean and variance, shape (N, G).

    Returns
    -------
    Tensor
        Scalar >= 0; infinite where the variance is 0 and ``x`` differs from the mean.
    """
    return _standardised_residuals(x, draw).square().mean()


def residual_correlation(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Root mean square correlation between the standardised residuals of two features.

    .. math:: d(x, \theta) = \Big(\frac{\lVert R \rVert_F^2 - \mathrm{tr}\, R^2_{\mathrm{diag}}}
        {G (G - 1)}\Big)^{1/2}, \qquad R = \mathrm{cor}_i(e_{ij}, e_{ik})

    The Frobenius norm of the off-diagonal of R up to a constant. Only the smaller of the Gram
    matrices (G, G) and (N, N), which have the same norm, is formed.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives mean and variance, shape (N, G).

    Returns
    -------
    Tensor
        Scalar in [0, 1]. A feature with constant residuals counts as uncorrelated with all
        others; 0 for a single feature.
    """
    residuals = _standardised_residuals(x, draw)
    n_features = residuals.shape[1]
    if n_features == 1:
        return residuals.new_zeros(())
    variance = _variance(residuals)
    varies = variance > 0
    norm = torch.where(varies, variance * len(residuals), 1.0).sqrt()
    unit = torch.where(varies, (residuals - residuals.mean(0)) / norm, 0.0)
    gram = unit.mT @ unit if len(residuals) >= n_features else unit @ unit.mT
    off_diagonal = gram.square().sum() - varies.sum()
    return (off_diagonal.clamp(min=0) / (n_features * (n_features - 1))).sqrt()


def mean(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean of all entries, :math:`\frac1{NG}\sum_{ij} x_{ij}`; a scalar statistic."""
    return x.mean()


def maximum(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Largest entry, :math:`\max_{ij} x_{ij}`; a scalar statistic with ties for counts."""
    return x.amax()


def quantile(q: float) -> Discrepancy:
    r"""Make the statistic "q-quantile of all entries", interpolated linearly.

    Parameters
    ----------
    q
        Probability in [0, 1]; .5 gives the median.

    Returns
    -------
    Discrepancy
        A scalar statistic called ``quantile(q)``.

    Raises
    ------
    ValueError
        If ``q`` lies outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be a probability in [0, 1], got {q}.")

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        # torch.quantile refuses more than 2^24 entries; two order statistics do not.
        entries = x.flatten()
        position = q * (len(entries) - 1)
        below = entries.kthvalue(math.floor(position) + 1).values
        above = entries.kthvalue(math.ceil(position) + 1).values
        return below + (above - below) * (position - math.floor(position))

    statistic.__name__ = f"quantile({q:g})"
    return statistic


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
        Scalar >= 0 (divisor N); 0 for equal totals.

    Raises
    ------
    ValueError
        If a row total is negative.
    """
    totals = x.sum(1)
    if totals.min() < 0:
        raise ValueError(
            f"library_size needs non-negative row totals, got {totals.min():.4g}; "
            "it is meant for counts."
        )
    return totals.log1p().std(correction=0)


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
    centre, variance = x.mean(0), _variance(x)
    used = (centre > 0) & (variance > 0)
    weight = used.to(x.dtype) / used.sum().clamp(min=1)
    a = torch.where(used, centre, 1.0).log()
    b = torch.where(used, variance, 1.0).log()
    a, b = a - weight @ a, b - weight @ b
    spread = weight @ a.square()
    negligible = spread <= torch.finfo(x.dtype).eps ** 2
    return torch.where(negligible, 0.0, weight @ (a * b) / torch.where(negligible, 1.0, spread))


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
    return _variance(x)


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
    return (x == 0).to(x.dtype).mean(0)


def _variance(x: Tensor) -> Tensor:
    """Variance of the columns with divisor N; rounding noise of constant columns becomes 0."""
    centre = x.mean(0)
    variance = (x - centre).square().mean(0)
    noise = 8 * torch.finfo(x.dtype).eps * centre
    return torch.where(variance > noise.square(), variance, 0.0)


def _standardised_residuals(x: Tensor, draw: PredictiveDraw) -> Tensor:
    likelihood = draw.likelihood(x)
    difference = x - likelihood.mean
    scaled = difference / likelihood.variance.sqrt()
    return torch.where(difference == 0, 0.0, scaled)  # 0/0 where the variance is 0
