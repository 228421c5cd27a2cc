"""How well the likelihood predicts each entry: densities, residuals, integral transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.moments import (
    column_variance,
    standardised_moment,
    standardised_residuals,
)
from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.marginals import mid_pit
from probinterp.criticism.tiles import log_density


def mean_negative_log_likelihood(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Average over units of the negative log density, the negative log score.

    .. math:: d(x, \theta) = -\frac1N \sum_i \log p(x_i \mid z_i, \theta)

    Under ``kind="predictive"`` the density is the log predictive density of the unit.

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
    return -log_density(draw.likelihood(x), x).mean()


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
    return standardised_residuals(x, draw).square().mean()


def mean_squared_residual(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Mean squared error of the likelihood's mean as a prediction of the data.

    .. math:: d(x, \theta) = \frac1{NG} \sum_{ij} (x_{ij} - m_{ij})^2

    Features with a large variance decide; :func:`chi_square` weighs them equally.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives the mean, shape (N, G).

    Returns
    -------
    Tensor
        Scalar >= 0, in squared units of the data.
    """
    return (x - draw.likelihood(x).mean).square().mean()


def reconstruction_error(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Squared error of the reconstruction relative to the spread of the data.

    .. math:: d(x, \theta) = \frac{\sum_{ij} (x_{ij} - m_{ij})^2}
        {\sum_{ij} (x_{ij} - \bar x_{\cdot j})^2}

    One less the coefficient of determination, also called the fraction of variance unexplained;
    the absolute error is :func:`mean_squared_residual`. The means are reconstructions of ``x``
    where the draw infers z from it.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives the mean, shape (N, G).

    Returns
    -------
    Tensor
        Scalar >= 0; 1 for a prediction by the feature means. Data without spread (a single
        unit, say) give infinity, or 0 where they are reconstructed exactly.
    """
    error = (x - draw.likelihood(x).mean).square().mean(0).sum()
    return torch.where(error == 0, 0.0, error / column_variance(x).sum())


def residual_skewness(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Skewness of the standardised residuals of all entries.

    .. math:: d(x, \theta) = m_3 / m_2^{3/2}, \qquad
        m_k = \frac1{NG} \sum_{ij} (e_{ij} - \bar e)^k

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives mean and variance, shape (N, G).

    Returns
    -------
    Tensor
        Scalar, any real number; 0 for constant residuals.
    """
    return standardised_moment(standardised_residuals(x, draw), 3, 0.0)


def residual_kurtosis(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Excess kurtosis of the standardised residuals of all entries.

    .. math:: d(x, \theta) = m_4 / m_2^2 - 3, \qquad
        m_k = \frac1{NG} \sum_{ij} (e_{ij} - \bar e)^k

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives mean and variance, shape (N, G).

    Returns
    -------
    Tensor
        Scalar >= -2, 0 for normal residuals; 0 by convention for constant ones.
    """
    return standardised_moment(standardised_residuals(x, draw), 4, 3.0)


def pit_uniformity(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Kolmogorov distance between the probability integral transforms and uniformity.

    .. math:: d(x, \theta) = \sup_t \Big| \frac1{NG} \#\{ij: u_{ij} \le t\} - t \Big|, \qquad
        u_{ij} = F_{ij}(x_{ij}) - \tfrac12 P_{ij}(X = x_{ij})

    For continuous laws u is F itself. For discrete ones the mid-value, a fixed number, takes
    the place of a randomised transform, which would not be a function of the data; it is not
    uniform, but the replicates deviate from uniformity in the same way.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood has marginals with a distribution function: an ``Independent``, a
        multivariate normal, a mixture of these, or a distribution that brings its own.

    Returns
    -------
    Tensor
        Scalar in [1 / (2 N G), 1].

    Raises
    ------
    TypeError
        If the likelihood has no marginals or these no distribution function.

    References
    ----------
    Predictive model assessment for count data (Czado, Gneiting and Held, 2009), section 2.1.
    """
    ordered = mid_pit(draw.likelihood(x), x).flatten().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=x.dtype, device=x.device) / len(ordered)
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax()
