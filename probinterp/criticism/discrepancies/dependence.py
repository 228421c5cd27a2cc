"""What should be independent and may not be: features, units, depth, neighbours in order."""

from __future__ import annotations

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy
from probinterp.criticism.discrepancies.moments import (
    column_variance,
    log_totals,
    standardised_columns,
    standardised_residuals,
)
from probinterp.criticism.draws import Discrepancy, PredictiveDraw


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
    return _off_diagonal(standardised_residuals(x, draw))


def unit_residual_correlation(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Root mean square correlation between the standardised residuals of two units.

    .. math:: d(x, \theta) = \Big(\frac{\lVert R \rVert_F^2 - \mathrm{tr}\, R^2_{\mathrm{diag}}}
        {N (N - 1)}\Big)^{1/2}, \qquad R = \mathrm{cor}_j(e_{ij}, e_{lj})

    Cells that share what the model does not know (a batch, a doublet, a cell type) have alike
    residuals. As in :func:`residual_correlation`, the smaller Gram matrix is formed.

    Parameters
    ----------
    x
        Data, shape (N, G).
    draw
        Its likelihood gives mean and variance, shape (N, G).

    Returns
    -------
    Tensor
        Scalar in [0, 1]. A unit with constant residuals counts as uncorrelated with all others;
        0 for a single unit or feature.
    """
    return _off_diagonal(standardised_residuals(x, draw).mT)


def library_size_correlation(x: Tensor, draw: PredictiveDraw) -> Tensor:
    r"""Root mean square correlation of the standardised residuals with the log library size.

    .. math:: d(x, \theta) = \Big(\frac1G \sum_j r_j^2\Big)^{1/2}, \qquad
        r_j = \mathrm{cor}_i\Big(e_{ij}, \log\big(1 + \textstyle\sum_k x_{ik}\big)\Big)

    Depth that the model does not account for moves the residuals of many features together.

    Parameters
    ----------
    x
        Counts, or other data with non-negative row totals, shape (N, G).
    draw
        Its likelihood gives mean and variance, shape (N, G).

    Returns
    -------
    Tensor
        Scalar in [0, 1]; constant residuals or totals count as uncorrelated. NaN if a row total
        is negative.
    """
    depth = standardised_columns(log_totals(x).unsqueeze(1)).squeeze(1)
    correlations = depth @ standardised_columns(standardised_residuals(x, draw)) / len(x)
    return correlations.square().mean().sqrt()


def autocorrelation(lag: int = 1) -> Discrepancy:
    r"""Make the statistic "autocorrelation of the data over the order of the units".

    .. math:: d(x) = \frac1G \sum_j \frac{\sum_{i=1}^{N-k} (x_{ij} - \bar x_{\cdot j})
        (x_{i+k,j} - \bar x_{\cdot j})}{\sum_{i=1}^N (x_{ij} - \bar x_{\cdot j})^2}

    For units with an order, in time or in space. Averaged over features;
    ``per_feature(autocorrelation(k))`` keeps them apart.

    Parameters
    ----------
    lag
        Distance k between the units that are compared, at least 1.

    Returns
    -------
    Discrepancy
        A scalar statistic in [-1, 1] called ``autocorrelation(k)``. A constant feature counts
        as 0.

    Raises
    ------
    ValueError
        If ``lag`` is no positive integer; when it is called, if there are not more units than
        ``lag``.
    """
    _require_lag(lag)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return _lagged(x, lag)

    return discrepancy(statistic, name=f"autocorrelation({lag})")


def residual_autocorrelation(lag: int = 1) -> Discrepancy:
    r"""Make the discrepancy "autocorrelation of the standardised residuals".

    As :func:`autocorrelation`, of :math:`e_{ij}` instead of the data: order that the model does
    not explain.

    Parameters
    ----------
    lag
        Distance k between the units that are compared, at least 1.

    Returns
    -------
    Discrepancy
        A scalar in [-1, 1] called ``residual_autocorrelation(k)``; constant residuals count as 0.

    Raises
    ------
    ValueError
        If ``lag`` is no positive integer; when it is called, if there are not more units than
        ``lag``.
    """
    _require_lag(lag)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return _lagged(standardised_residuals(x, draw), lag)

    return discrepancy(statistic, name=f"residual_autocorrelation({lag})")


def _off_diagonal(residuals: Tensor) -> Tensor:
    """Root mean square of the correlations between different columns."""
    n_rows, n_columns = residuals.shape
    if n_columns == 1:
        return residuals.new_zeros(())
    variance = column_variance(residuals)
    constant = variance == 0
    norm = torch.where(constant, 1.0, variance * n_rows).sqrt()
    unit = torch.where(constant, 0.0, (residuals - residuals.mean(0)) / norm)
    gram = unit.mT @ unit if n_rows >= n_columns else unit @ unit.mT
    off_diagonal = gram.square().sum() - (n_columns - constant.sum())
    return (off_diagonal.clamp(min=0) / (n_columns * (n_columns - 1))).sqrt()


def _lagged(x: Tensor, lag: int) -> Tensor:
    if len(x) <= lag:
        raise ValueError(f"an autocorrelation at lag {lag} needs more units, got {len(x)}.")
    standard = standardised_columns(x)
    return (standard[lag:] * standard[:-lag]).sum(0).mean() / len(x)


def _require_lag(lag: int) -> None:
    if not isinstance(lag, int) or lag < 1:
        raise ValueError(f"lag must be a positive integer, got {lag!r}.")
