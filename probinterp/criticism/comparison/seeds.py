"""Bootstrap over training seeds and images together: what is said of a method, not of one fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.comparison.image_weights import image_weights, percentiles
from probinterp.criticism.comparison.intervals import normal_quantile
from probinterp.criticism.comparison.reconstruction import (
    ImageSums,
    Metric,
    metric_of,
    require_same_images,
)

FEWEST_SEEDS = 3


class SeedBootstrap(NamedTuple):
    """A metric averaged over training seeds, by layer.

    Parameters
    ----------
    metric
        Name of the metric.
    estimate
        Mean over seeds on all images, (L,).
    low, high
        Percentile interval over seeds and images, (L,) each.
    seed_error
        Standard error that a new choice of seeds brings, (L,).
    image_error
        Standard error that new images bring, with the seeds fixed, (L,).
    by_seed
        Metric of each seed on all images, (K, L).
    draws
        Metric of each resample, (B, L).
    level
        Coverage of the interval.
    """

    metric: str
    estimate: Tensor
    low: Tensor
    high: Tensor
    seed_error: Tensor
    image_error: Tensor
    by_seed: Tensor
    draws: Tensor
    level: float


def seed_bootstrap(
    runs: Sequence[ImageSums],
    *,
    against: Sequence[ImageSums] | None = None,
    metric: Metric = "nmse",
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    mean: Tensor | None = None,
) -> SeedBootstrap:
    r"""Resample seeds and images at once.

    Each resample draws images as in :func:`bootstrap_nmse`, the same for all seeds, and K - 1 of
    the K seeds with replacement: a mean of so many has the variance :math:`s^2 / K` without the
    bias that drawing K would have, which matters for three seeds.

    Parameters
    ----------
    runs
        Sums by image of each training seed, all on the same images; at least three.
    against
        The same of another method, seed by seed: its metric is subtracted (paired).
    metric, n_boot, level, seed, mean
        As for :func:`bootstrap_nmse`.

    Raises
    ------
    ValueError
        If there are fewer than three seeds or the images differ.

    References
    ----------
    Resampling inference with complex survey data (Rao and Wu, 1988), section 2.
    """
    normal_quantile(level)
    n_seeds = len(runs)
    if n_seeds < FEWEST_SEEDS:
        raise ValueError(
            f"a claim about a method needs at least {FEWEST_SEEDS} seeds, got {n_seeds}."
        )
    if against is not None and len(against) != n_seeds:
        raise ValueError(f"against must have {n_seeds} seeds too, got {len(against)}.")
    everything = [*runs, *(against or ())]
    require_same_images(everything)
    once = torch.ones(1, len(runs[0].image), dtype=torch.float64)
    by_seed = _subtracted(_each(everything, once, metric, mean), n_seeds)[0]  # (K, L)
    values = torch.cat(
        [
            _subtracted(_each(everything, weights, metric, mean), n_seeds)
            for weights in image_weights(len(runs[0].image), n_boot, seed)
        ]
    )  # (B, K, L)
    drawn = np.random.default_rng([seed, n_seeds]).integers(n_seeds, size=(n_boot, n_seeds - 1))
    draws = values[torch.arange(n_boot)[:, None], torch.from_numpy(drawn)].mean(1)
    low, high = percentiles(draws, level)
    name = metric if against is None else f"difference of {metric}"
    return SeedBootstrap(
        metric=name,
        estimate=by_seed.mean(0),
        low=low,
        high=high,
        seed_error=by_seed.std(0) / n_seeds**0.5,
        image_error=values.mean(1).std(0),
        by_seed=by_seed,
        draws=draws,
        level=level,
    )


def _each(
    runs: Sequence[ImageSums], weights: Tensor, metric: Metric, mean: Tensor | None
) -> Tensor:
    """Metric of each run under the same weights, (W, K, L)."""
    return torch.stack([metric_of(run, weights, metric, mean) for run in runs], 1)


def _subtracted(values: Tensor, n_seeds: int) -> Tensor:
    """Metric of the first method, minus that of the second where there is one, (W, K, L)."""
    first, second = values[:, :n_seeds], values[:, n_seeds:]
    return first - second if second.shape[1] else first
