"""Numerical pieces that several discrepancies share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.tiles import row_tiles


def column_variance(x: Tensor) -> Tensor:
    """Variance of the columns with divisor N; rounding noise of constant columns becomes 0."""
    centre = x.mean(0)
    squares = torch.zeros_like(centre)
    for rows in row_tiles(x):
        squares = squares + (rows - centre).square().sum(0)
    variance = squares / len(x)
    noise = 8 * torch.finfo(x.dtype).eps * centre
    return torch.where(variance <= noise.square(), 0.0, variance)  # NaN stays


def standardised_columns(x: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1, divisor N; a constant column becomes 0."""
    variance = column_variance(x)
    constant = variance == 0
    scale = torch.where(constant, 1.0, variance).sqrt()
    return torch.where(constant, 0.0, (x - x.mean(0)) / scale)


def standardised_moment(values: Tensor, order: int, normal: float) -> Tensor:
    """Mean power of the standardised entries less that of the normal law; 0 if all are equal."""
    standard = standardised_columns(values.reshape(-1, 1))
    constant = (standard == 0).all()
    return torch.where(constant, 0.0, standard.pow(order).mean() - normal)


def interpolated_quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of all entries, interpolated linearly between order statistics."""
    # torch.quantile refuses more than 2^24 entries; two order statistics do not.
    entries = values.flatten()
    position = q * (len(entries) - 1)
    below = entries.kthvalue(math.floor(position) + 1).values
    above = entries.kthvalue(math.ceil(position) + 1).values
    return below + (above - below) * (position - math.floor(position))


def require_probability(q: float) -> None:
    """Raise ValueError unless ``q`` lies in [0, 1]."""
    if not 0 <= q <= 1:
        raise ValueError(f"q must be a probability in [0, 1], got {q}.")


def standardised_residuals(x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Entries less their mean over their standard deviation under the likelihood, (N, G)."""
    likelihood = draw.likelihood(x)
    difference = x - likelihood.mean
    scaled = difference / likelihood.variance.sqrt()
    return torch.where(difference == 0, 0.0, scaled)  # 0/0 where the variance is 0


def log_totals(x: Tensor) -> Tensor:
    """Log of one plus the row totals, (N,); all NaN if a total is negative.

    An exception would need the value on the host: one wait for the device per replicate. A check
    refuses NaN after its last draw.
    """
    totals = x.sum(1)
    return torch.where(totals.amin() < 0, math.nan, totals.log1p())
