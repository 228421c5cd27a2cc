"""Bootstrap over images of anything that weights of the images give."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.comparison.image_weights import image_weights, percentiles
from probinterp.criticism.comparison.intervals import normal_quantile


class Bootstrap(NamedTuple):
    """A statistic with its bootstrap over images; L stands for any shape it has.

    Parameters
    ----------
    metric
        Name of the metric.
    estimate
        On all images, (L,).
    low, high
        Percentile interval, (L,) each.
    standard_error
        Standard deviation of the draws, (L,).
    draws
        Metric of each resample, (B, L).
    level
        Coverage of the interval.
    n
        Number of images.
    baseline
        For reconstruction, the mean vector that the variance is taken around: ``"resampled"`` with
        the images, or ``"frozen"``, given.
    """

    metric: str
    estimate: Tensor
    low: Tensor
    high: Tensor
    standard_error: Tensor
    draws: Tensor
    level: float
    n: int
    baseline: str | None = None


def bootstrap_images(
    statistic: Callable[[Tensor], Tensor],
    n_images: int,
    *,
    name: str = "statistic",
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    baseline: str | None = None,
) -> Bootstrap:
    """Bootstrap a statistic, such as a mean or a ratio of sums, over images.

    Parameters
    ----------
    statistic
        Takes weights of the images, (W, I) in double precision, and gives (W, ...): for values
        (I, M) of the images ``lambda w: w @ values / w.sum(1, keepdim=True)`` is their mean.
    n_images
        Number of images I.
    name, baseline
        For the result.
    n_boot, seed
        Resamples of images, and their seed.
    level
        Coverage of the percentile intervals.

    Raises
    ------
    ValueError
        If there are fewer than two images.
    """
    normal_quantile(level)
    draws = torch.cat([statistic(weights) for weights in image_weights(n_images, n_boot, seed)])
    estimate = statistic(torch.ones(1, n_images, dtype=torch.float64))[0]
    low, high = percentiles(draws, level)
    spread = draws.std(0)
    return Bootstrap(name, estimate, low, high, spread, draws, level, n_images, baseline)
