"""Four models with exact posteriors, each with a misfit of growing strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from simulations import normals, seeded_gamma
from study import Statistic, largest_group, mean, negative_log_likelihood
from torch import Tensor

from probinterp.models.exact import (
    ExactDraws,
    LinearRegression,
    PoissonGamma,
    ProbabilisticPCA,
    TwoLevelGaussian,
)


class Rows(NamedTuple):
    """Units of D data sets, with their covariates where the model has any."""

    x: Tensor  # (D, N, G)
    design: Tensor | None = None  # (D, N, P)

    def halves(self) -> tuple[Rows, Rows]:
        """First and second half of the units of each data set."""
        half = self.x.shape[1] // 2
        design = (None, None) if self.design is None else self.design.split(half, dim=1)
        return Rows(self.x[:, :half], design[0]), Rows(self.x[:, half:], design[1])

    def blocks(self, n_blocks: int) -> Rows:
        """Each block of units as a data set of its own, an even number of units in each."""
        size = self.x.shape[1] // n_blocks // 2 * 2

        def cut(values: Tensor) -> Tensor:
            return values[:, : n_blocks * size].unflatten(1, (n_blocks, size)).flatten(0, 1)

        return Rows(cut(self.x), None if self.design is None else cut(self.design))


class Model(NamedTuple):
    """A model to check, and how wrong the data may be."""

    statistic: Statistic
    misfit: str  # what the strengths measure; the first one is the truth
    strengths: tuple[float, ...]
    n_blocks: int
    data: Callable[[int, float, int], Rows]  # (n_sets, strength, seed)
    new: Callable[[Rows, Rows, int, int], ExactDraws]  # fit to the first, replicate the second
    same: Callable[[Rows, int, int], ExactDraws]  # replicate the data of the fit
    again: Callable[[Rows], Callable[[], Tensor]]  # data that the fit simulates


def regression() -> Model:
    """Noise with sd 1 known to the model; 200 units, 10 covariates."""

    def data(n_sets: int, strength: float, seed: int) -> Rows:
        normal = normals(seed)
        design = normal(n_sets, 200, 10)
        return Rows(design @ normal(n_sets, 10, 1) + strength * normal(n_sets, 200, 1), design)

    def fit(rows: Rows) -> LinearRegression:
        assert rows.design is not None
        return LinearRegression(rows.design, rows.x, noise_scale=1.0)

    return Model(
        negative_log_likelihood,
        "noise sd / sd of the model",
        (1.0, 1.05, 1.1, 1.15, 1.2, 1.3),
        6,
        data,
        lambda observed, new, n_draws, seed: fit(observed).draws(new.design, n_draws, seed=seed),
        lambda rows, n_draws, seed: fit(rows).draws(rows.design, n_draws, seed=seed),
        lambda rows: fit(rows).draws(rows.design, 1).reference.replicate,
    )


def poisson() -> Model:
    """Negative-binomial counts with mean 2; 200 units."""

    def data(n_sets: int, strength: float, seed: int) -> Rows:
        rate = torch.full((n_sets, 200, 1), 2.0, dtype=torch.float64)
        if strength > 1:
            size = 2 / (strength - 1)
            rate = seeded_gamma(size, size / 2, (n_sets, 200, 1), seed)
        return Rows(torch.poisson(rate, generator=torch.Generator().manual_seed(seed + 1)))

    def draws(observed: Rows, new: Rows, n_draws: int, seed: int) -> ExactDraws:
        return PoissonGamma(observed.x).draws(new.x.shape[1], n_draws, seed=seed)

    return Model(
        mean,
        "variance / mean",
        (1.0, 1.5, 2.0, 3.0, 6.0, 11.0),
        13,
        data,
        draws,
        lambda rows, n_draws, seed: draws(rows, rows, n_draws, seed),
        lambda rows: draws(rows, rows, 1, 0).reference.replicate,
    )


def hierarchical() -> Model:
    """Gamma-distributed group means with sd 3; 64 groups of 8 items with sd 2."""

    def data(n_sets: int, strength: float, seed: int) -> Rows:
        normal = normals(seed)
        effect = normal(n_sets, 64, 1)
        if strength > 0:
            shape = 4 / strength**2
            gamma = seeded_gamma(shape, 1.0, (n_sets, 64, 1), seed)
            effect = (gamma - shape) / math.sqrt(shape)
        return Rows(3 * effect + 2 * normal(n_sets, 64, 8))

    def fit(rows: Rows) -> TwoLevelGaussian:
        return TwoLevelGaussian(rows.x, noise_scale=2.0)

    return Model(
        largest_group,
        "skewness of the group means",
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
        8,
        data,
        lambda observed, new, n_draws, seed: fit(observed).new_groups(
            *new.x.shape[1:], n_draws, seed=seed
        ),
        lambda rows, n_draws, seed: fit(rows).new_items(8, n_draws, seed=seed),
        lambda rows: fit(rows).new_groups(64, 8, 1).reference.replicate,
    )


def factor_analysis() -> Model:
    """Known loadings of 2 factors on 8 features; 100 units."""
    loadings = normals(11)(8, 2)
    model = ProbabilisticPCA(loadings, 1.0)

    def data(n_sets: int, strength: float, seed: int) -> Rows:
        normal = normals(seed)
        z = strength * normal(n_sets, 100, 2)
        return Rows(z @ loadings.T + normal(n_sets, 100, 8))

    return Model(
        negative_log_likelihood,
        "sd of the factors / sd of the model",
        (1.0, 1.05, 1.1, 1.2, 1.3, 1.5),
        9,
        data,
        lambda observed, new, n_draws, seed: model.new_rows(tuple(new.x.shape[:2]), n_draws),
        lambda rows, n_draws, seed: model.same_rows(rows.x, n_draws, seed=seed),
        lambda rows: model.new_rows(tuple(rows.x.shape[:2]), 1).reference.replicate,
    )


MODELS = {
    "linear regression: NLL": regression(),
    "Poisson: mean": poisson(),
    "two-level: largest group mean": hierarchical(),
    "factor analysis: NLL": factor_analysis(),
}
