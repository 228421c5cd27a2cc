"""Accuracy while sources are taken away or added, with bands over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.comparison.cells import flags
from probinterp.criticism.comparison.image_weights import image_weights, percentiles
from probinterp.criticism.comparison.intervals import Interval, normal_quantile
from probinterp.criticism.comparison.subsets import SubsetRank, subset_rank


class Curve(NamedTuple):
    """A deletion or insertion curve.

    Parameters
    ----------
    kept_fraction
        Share of sources kept at each step, (T,).
    accuracy
        Share of images recognised at each step, (T,).
    low, high
        Pointwise bootstrap band, (T,) each.
    auc
        Area under the curve over the share of sources kept (trapezoid).
    auc_interval
        Bootstrap interval of the area.
    auc_draws
        Areas of the resampled images, (B,); those of curves on the same images with the same seed
        belong together.
    n
        Number of images.
    """

    kept_fraction: Tensor
    accuracy: Tensor
    low: Tensor
    high: Tensor
    auc: float
    auc_interval: Interval
    auc_draws: Tensor
    n: int


class CurveDifference(NamedTuple):
    """Area under one curve minus that under another, on the same images.

    Parameters
    ----------
    difference
        The difference.
    interval
        Paired bootstrap interval.
    """

    difference: float
    interval: Interval


def curve(
    correct_by_step: Any,
    kept_fraction: Any = None,
    *,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Curve:
    r"""Accuracy by step with an image bootstrap.

    .. math:: \mathrm{AUC} = \sum_t \tfrac12 (a_t + a_{t+1}) |f_{t+1} - f_t|

    Parameters
    ----------
    correct_by_step
        Whether each image is recognised after each step, (T, N).
    kept_fraction
        Share f of sources kept at each step, (T,), rising or falling; by default it falls from 1
        to 0 in equal steps.
    n_boot
        Resamples of images.
    level
        Coverage of band (pointwise) and interval.
    seed
        Seed of the resamples.

    Raises
    ------
    ValueError
        If shapes do not fit or the shares neither rise nor fall.
    """
    normal_quantile(level)
    correct = torch.from_numpy(flags(correct_by_step, "correct_by_step")).double()
    if correct.ndim != 2 or len(correct) < 2:
        raise ValueError(
            f"correct_by_step must be steps by images, at least 2 steps, got shape "
            f"{tuple(correct.shape)}."
        )
    kept = _kept(kept_fraction, len(correct))
    n = correct.shape[1]
    draws = torch.cat([weights @ correct.mT / n for weights in image_weights(n, n_boot, seed)])
    accuracy, areas = correct.mean(1), _area(draws, kept)
    low, high = percentiles(draws, level)
    auc_low, auc_high = (end.item() for end in percentiles(areas, level))
    interval = Interval(auc_low, auc_high, level, "image bootstrap")
    return Curve(kept, accuracy, low, high, _area(accuracy, kept).item(), interval, areas, n)


def curve_difference(first: Curve, second: Curve) -> CurveDifference:
    """Compare two curves of the same images, resampled with the same seed.

    Raises
    ------
    ValueError
        If the images or resamples cannot be the same.
    """
    if first.n != second.n or first.auc_draws.shape != second.auc_draws.shape:
        raise ValueError(
            f"curves must rest on the same images and resamples, got {first.n} and {second.n} "
            f"images, {len(first.auc_draws)} and {len(second.auc_draws)} resamples."
        )
    level = first.auc_interval.level
    low, high = (v.item() for v in percentiles(first.auc_draws - second.auc_draws, level))
    interval = Interval(low, high, level, "paired image bootstrap")
    return CurveDifference(first.auc - second.auc, interval)


def curve_rank(
    areas: Mapping[str, float], attributed: str, *, smaller_is_better: bool = False
) -> SubsetRank:
    """Rank of one order's area among those of random orders.

    Parameters
    ----------
    areas
        Area by name of the order, the attributed one included.
    attributed
        Name of the order that an attribution chose.
    smaller_is_better
        For deletion: taking away what matters first should hurt soonest. Values are then negated.
    """
    sign = -1 if smaller_is_better else 1
    return subset_rank({k: sign * v for k, v in areas.items()}, attributed, complete=False)


def _kept(kept_fraction: Any, n_steps: int) -> Tensor:
    if kept_fraction is None:
        return torch.linspace(1, 0, n_steps, dtype=torch.float64)
    kept = torch.as_tensor(kept_fraction).cpu().double()
    steps = kept.diff()
    if kept.shape != (n_steps,) or not bool((steps >= 0).all() | (steps <= 0).all()):
        raise ValueError(
            f"kept_fraction must rise or fall over the {n_steps} steps, got {kept.tolist()}."
        )
    return kept


def _area(accuracy: Tensor, kept: Tensor) -> Tensor:
    return torch.trapezoid(accuracy, kept, dim=-1) * torch.sign(kept[-1] - kept[0])
