"""Statistics of all entries of the data, pooled: location, spread and shape."""

from __future__ import annotations

from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy
from probinterp.criticism.discrepancies.moments import (
    column_variance,
    interpolated_quantile,
    require_probability,
    standardised_moment,
)
from probinterp.criticism.draws import Discrepancy, PredictiveDraw


def mean(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean of all entries, :math:`\frac1{NG}\sum_{ij} x_{ij}`; a scalar statistic."""
    return x.mean()


def maximum(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Largest entry, :math:`\max_{ij} x_{ij}`; a scalar statistic with ties for counts."""
    return x.amax()


def minimum(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Smallest entry, :math:`\min_{ij} x_{ij}`; a scalar statistic with ties for counts."""
    return x.amin()


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
    require_probability(q)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return interpolated_quantile(x, q)

    return discrepancy(statistic, name=f"quantile({q:g})")


def second_moment(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean square of all entries, :math:`\frac1{NG}\sum_{ij} x_{ij}^2`; a scalar statistic."""
    return x.square().mean()


def third_moment(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean cube of all entries, :math:`\frac1{NG}\sum_{ij} x_{ij}^3`; a scalar statistic."""
    return x.pow(3).mean()


def variance(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Variance of all entries about their common mean, divisor N G.

    .. math:: d(x) = \frac1{NG} \sum_{ij} (x_{ij} - \bar x)^2

    With several features it mixes their spread with the differences between their means:
    :func:`feature_variance` keeps them apart.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Scalar >= 0; exactly 0 for constant data.
    """
    return column_variance(x.reshape(-1, 1)).squeeze(0)


def skewness(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Skewness of all entries, central moments with divisor N G.

    .. math:: d(x) = m_3 / m_2^{3/2}, \qquad m_k = \frac1{NG} \sum_{ij} (x_{ij} - \bar x)^k

    Features on scales of their own are better looked at one by one, ``per_feature(skewness)``.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Scalar, any real number, 0 for symmetric or constant data.
    """
    return standardised_moment(x, 3, 0.0)


def kurtosis(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Excess kurtosis of all entries, central moments with divisor N G.

    .. math:: d(x) = m_4 / m_2^2 - 3, \qquad m_k = \frac1{NG} \sum_{ij} (x_{ij} - \bar x)^k

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Not used.

    Returns
    -------
    Tensor
        Scalar >= -2, 0 for normal data; 0 by convention for constant data.
    """
    return standardised_moment(x, 4, 3.0)
