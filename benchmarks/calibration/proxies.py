"""Checks of point proxies on data sets simulated from the residual model, and from other laws.

Every data set has 30 calibration and 30 new images with a class token and a grid of 4 x 4 patches,
3 layers, 6 channels; level 5 %. The proxy is a fixed prediction, or a ridge regression on 60
training images; a latent law draws sparse codes from inputs, as a Bayesian proxy does. Columns:
``rejected`` is the rate of the two-sided p-values, averaged over cells; ``family`` that of any cell
after adjustment over the cells of a discrepancy, with standard error ``se``; ``ks_p`` the smallest
Kolmogorov-Smirnov p over cells for the uniformity over data sets, times their number; ``mean_p``
the mean one-sided p. The two image columns are rates at which the p-values of the 30 images of a
data set are called not uniform, taken for independent, and ranked among replicates.

The classical rows have few images (8) and many inputs, so that the proxy fits its training images
better than others: their residuals checked against themselves say "fits" too often, and a residual
model made of them calls new images a misfit.

    python benchmarks/calibration/proxies.py --out docs/studies/proxy_checks.csv
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import kstest
from study import arguments, report
from torch import Tensor
from torch.distributions import Independent, Normal

from probinterp.criticism import (
    CriticismWarning,
    FunctionDraw,
    ProxyCheckResult,
    TokenLayout,
    check_proxy,
    fit_residual_model,
    residual_draws,
)

GRID, N_LAYERS, WIDTH = (4, 4), 3, 6
N_PATCHES = GRID[0] * GRID[1]
Noise = Callable[[TokenLayout], Tensor]  # residuals (N, L, D) with variance about 1
Check = Callable[[int, int], ProxyCheckResult]  # (n_draws, seed)


def layout_of(n_images: int) -> TokenLayout:
    """Images with a class token and a grid of patches."""
    kind = torch.tensor([0] + [1] * N_PATCHES).repeat(n_images)
    image = torch.arange(n_images).repeat_interleave(1 + N_PATCHES)
    return TokenLayout(image, kind, N_LAYERS, GRID)


def normal(layout: TokenLayout) -> Tensor:
    """Independent normal residuals."""
    return torch.randn(len(layout.image), N_LAYERS, WIDTH)


def heavy_tailed(layout: TokenLayout) -> Tensor:
    """Student residuals with 4 degrees of freedom, one scale for all channels of a token."""
    scale = torch.distributions.Gamma(2.0, 2.0).sample((len(layout.image), N_LAYERS, 1))
    return normal(layout) / (2 * scale).sqrt()


def across_layers(layout: TokenLayout) -> Tensor:
    """Correlation .3 between any two layers."""
    return 0.3**0.5 * normal(layout)[:, :1] + 0.7**0.5 * normal(layout)


def across_patches(layout: TokenLayout) -> Tensor:
    """Averages with the neighbours on the right and below: correlation 1/2 or 1/4 of neighbours."""
    r = normal(layout).unflatten(0, (layout.n_images, 1 + N_PATCHES))
    on_grid = r[:, 1:].unflatten(1, GRID)
    smooth = (on_grid + on_grid.roll(-1, 1) + on_grid.roll(-1, 2)) / 3**0.5
    return torch.cat([r[:, :1], smooth.flatten(1, 2)], 1).flatten(0, 1)


def image_scales(layout: TokenLayout) -> Tensor:
    """A scale of its own for every image: tokens of an image are dependent."""
    scale = (0.4 * torch.randn(layout.n_images, 1, 1)).exp()
    return normal(layout) * scale.repeat_interleave(1 + N_PATCHES, 0)


def mixed(r: Tensor, mixing: Tensor) -> Tensor:
    """Residuals with correlated channels: (N, L, D) by (L, D, D)."""
    return torch.einsum("nld,lde->nle", r, mixing)


def fixed_prediction(new: Noise = normal, *, scale: float = 1.0, n_images: int = 30) -> Check:
    """Calibration residuals of a normal law, new ones of another."""

    def check(n_draws: int, seed: int) -> ProxyCheckResult:
        torch.manual_seed(seed)
        layout = layout_of(n_images)
        mixing = torch.eye(WIDTH) + 0.3 * torch.randn(N_LAYERS, WIDTH, WIDTH)
        prediction = 3 * normal(layout)
        calibration = image_scales if new is image_scales else normal
        model = fit_residual_model(mixed(calibration(layout), mixing), layout)
        draws = residual_draws(prediction, layout, model, n_draws, seed)
        x = prediction + scale * mixed(new(layout), mixing)
        return check_proxy(draws, x, layout, seed=seed)

    return check


def ridge(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Ridge regression of every layer, coefficients (L, E, D)."""
    x, y = inputs.transpose(0, 1), outputs.transpose(0, 1)
    return torch.linalg.solve(x.mT @ x + 0.1 * torch.eye(x.shape[2]), x.mT @ y)


def regression(kind: str, *, n_train: int = 60, n_inputs: int = 4, n_new: int = 30) -> Check:
    """A proxy fitted by ridge regression; ``kind`` says what is checked against what."""

    def check(n_draws: int, seed: int) -> ProxyCheckResult:
        torch.manual_seed(seed)
        truth = torch.randn(N_LAYERS, n_inputs, WIDTH) / n_inputs**0.5
        sets = {}
        for name, n in {"train": n_train, "calibration": n_new, "new": n_new}.items():
            layout = layout_of(n)
            inputs = torch.randn(len(layout.image), N_LAYERS, n_inputs)
            sets[name] = layout, inputs, mixed(inputs, truth) + normal(layout)
        fitted = ridge(*sets["train"][1:])
        residuals = {name: y - mixed(x, fitted) for name, (_, x, y) in sets.items()}
        source = "calibration" if kind == "held out" else "train"
        target = "train" if kind == "classical" else "new"
        # diagonal: 6 channels are more than the few class tokens would need, and truly independent
        model = fit_residual_model(residuals[source], sets[source][0], covariance="diagonal")
        layout, inputs, y = sets[target]
        draws = residual_draws(mixed(inputs, fitted), layout, model, n_draws, seed)
        name = "ppc" if kind == "classical" else "pop-pc"
        return check_proxy(draws, y, layout, check=name, seed=seed)

    return check


def latent_codes(n_draws: int, seed: int) -> ProxyCheckResult:
    """Spike-and-slab codes given the inputs, with known parameters: a correct Bayesian proxy."""
    torch.manual_seed(seed)
    layout, n_codes = layout_of(30), 12
    decoder = torch.randn(N_LAYERS, n_codes, WIDTH)
    inclusion = torch.rand(len(layout.image), N_LAYERS, n_codes).square()
    location = torch.randn(len(layout.image), N_LAYERS, n_codes)
    mean = mixed(inclusion * location, decoder)
    code_variance = inclusion * (location.square() + 0.25) - (inclusion * location).square()
    variance = mixed(code_variance, decoder.square()) + 0.25

    def replicate() -> Tensor:
        codes = torch.bernoulli(inclusion) * (location + 0.5 * torch.randn_like(location))
        return mixed(codes, decoder) + 0.5 * normal(layout)

    law = Independent(Normal(mean, variance.sqrt()), 2)
    draws = [FunctionDraw(replicate, lambda x: law, "covariates")] * (n_draws + 1)
    return check_proxy(draws, replicate(), layout, seed=seed)


FEW = {"n_train": 8, "n_inputs": 40, "n_new": 8}
WORLDS: dict[str, Check] = {
    "residual model": fixed_prediction(),
    "images differ in scale": fixed_prediction(image_scales),
    "ridge regression": regression("held out"),
    "latent codes": latent_codes,
    "correlation .3 between layers": fixed_prediction(across_layers),
    "neighbouring patches alike": fixed_prediction(across_patches),
    "heavy tails": fixed_prediction(heavy_tailed),
    "residuals 10 % larger": fixed_prediction(scale=1.1),
    "few images, held out": regression("held out", **FEW),
    "few images, classical": regression("classical", **FEW),
    "few images, residual model of training": regression("training residuals", **FEW),
}


class Found(NamedTuple):
    """p-values of one discrepancy over D data sets, C cells."""

    rank: Tensor  # (D, C)
    two_sided: Tensor  # (D, C)
    one_sided: Tensor  # (D, C)
    family: Tensor  # (D,)
    image_ks: Tensor  # (D, C)
    image_ks_replicated: Tensor  # (D, C)


def p_values(world: str, n_sets: int, n_draws: int, seed: int = 0) -> dict[str, Found]:
    """p-values of all discrepancies by name."""
    seeds = np.random.SeedSequence(seed).generate_state(n_sets).tolist()
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    for one in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CriticismWarning)
            result = WORLDS[world](n_draws, one)
        for name, pooled in result.pooled.items():
            images = result.images[name]
            row = (pooled.p_rank, pooled.p_two_sided, pooled.p_value, result.p_family(name).amin())
            found.setdefault(name, []).append((*row, images.ks_p, images.ks_p_replicated))
    return {name: Found(*map(torch.stack, zip(*rows, strict=True))) for name, rows in found.items()}


def rates(found: Found) -> dict[str, float]:
    """Rejection rates at 5 %, uniformity over data sets, mean p."""
    n_sets, n_cells = found.rank.shape
    family = float((found.family <= 0.05).double().mean())
    ks = [kstest(found.rank[:, c].numpy(), "uniform").pvalue for c in range(n_cells)]
    return {
        "cells": n_cells,
        "sets": n_sets,
        "rejected": float((found.two_sided <= 0.05).double().mean()),
        "family": family,
        "se": max(family * (1 - family), 0.05 * 0.95 / 4) ** 0.5 / n_sets**0.5,
        "ks_p": min(1.0, min(ks) * n_cells),
        "mean_p": float(found.one_sided.mean()),
        "images": float((found.image_ks <= 0.05).double().mean()),
        "images_ranked": float((found.image_ks_replicated <= 0.05).double().mean()),
    }


def main() -> None:
    options = arguments(__doc__, n_sets=200, n_draws=119)
    torch.set_num_threads(1)
    rows = []
    for world in WORLDS:
        found = p_values(world, options.sets, options.draws, options.seed)
        rows += [{"world": world, "discrepancy": k} | rates(v) for k, v in found.items()]
        print(world, flush=True)
    report(rows, options.out)


if __name__ == "__main__":
    main()
