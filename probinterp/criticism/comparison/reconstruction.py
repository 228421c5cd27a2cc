"""Intervals of reconstruction metrics by one matrix product, from sums over each image's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from probinterp.criticism.comparison.image_bootstrap import Bootstrap, bootstrap_images

Metric = Literal["nmse", "r2", "cosine"]
CHUNK_BYTES = 256e6  # of the weighted sums that are held at a time


class ImageSums(Protocol):
    r"""Sums over the tokens of each image, by layer.

    ``error`` :math:`E = \sum_t \lVert y - \hat y \rVert^2`, ``squares``
    :math:`Q = \sum_t \lVert y \rVert^2` and ``cosine``, (I, L) each; ``total``
    :math:`S = \sum_t y`, (I, L, D); ``n_tokens`` and ``image``, (I,).
    """

    @property
    def error(self) -> Tensor: ...  # noqa: D102
    @property
    def squares(self) -> Tensor: ...  # noqa: D102
    @property
    def total(self) -> Tensor: ...  # noqa: D102
    @property
    def cosine(self) -> Tensor: ...  # noqa: D102
    @property
    def n_tokens(self) -> Tensor: ...  # noqa: D102
    @property
    def image(self) -> Tensor: ...  # noqa: D102


def metric_of(
    sums: ImageSums, weights: Tensor, metric: Metric = "nmse", mean: Tensor | None = None
) -> Tensor:
    r"""Metric of each layer under weights w of the images, (W, L).

    .. math:: \mathrm{NMSE}(w) = \frac{wE}{wQ - \lVert wS \rVert^2 / wn}, \quad
        R^2 = 1 - \mathrm{NMSE}, \quad \cos(w) = \frac{wC}{wn}

    With a frozen mean :math:`\mu` the denominator is
    :math:`w(Q - 2 S\mu + n \lVert\mu\rVert^2)`, which needs no product with S.

    Parameters
    ----------
    sums
        Sums by image.
    weights
        Weights, (W, I).
    metric
        ``"nmse"``, ``"r2"`` or ``"cosine"``.
    mean
        Frozen mean vectors, (L, D).
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}.")
    w = weights.double()
    n_tokens = sums.n_tokens.double()
    if metric == "cosine":
        return (w @ sums.cosine.double()) / (w @ n_tokens).unsqueeze(-1)
    if mean is None:
        spread = w @ sums.squares.double() - _squared_sums(sums.total, w) / (w @ n_tokens)[:, None]
    else:
        spread = w @ _around(sums, mean.double())
    nmse = (w @ sums.error.double()) / spread
    return nmse if metric == "nmse" else 1 - nmse


def bootstrap_nmse(
    sums: ImageSums,
    *,
    metric: Metric = "nmse",
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    mean: Tensor | None = None,
) -> Bootstrap:
    """Image bootstrap of a reconstruction metric in every layer.

    Parameters
    ----------
    sums
        Sums by image, such as :func:`probinterp.inference.reconstruction_statistics` gives; no
        second pass over the tokens is needed.
    metric
        ``"nmse"``, ``"r2"`` or ``"cosine"``.
    n_boot, seed
        Resamples of images, and their seed.
    level
        Coverage of the intervals.
    mean
        Mean vectors (L, D) of training data to take the variance around; by default the mean is
        resampled with the images.

    Raises
    ------
    ValueError
        If there are fewer than two images or the metric is unknown.
    """
    return bootstrap_images(
        lambda weights: metric_of(sums, weights, metric, mean),
        len(sums.image),
        name=metric,
        n_boot=n_boot,
        level=level,
        seed=seed,
        baseline=_baseline(mean),
    )


def paired_bootstrap(
    first: ImageSums,
    second: ImageSums,
    *,
    metric: Metric = "nmse",
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    mean: Tensor | None = None,
) -> Bootstrap:
    """Metric of the first proxy minus that of the second, the same images resampled for both.

    Raises
    ------
    ValueError
        If the two do not rest on the same images.
    """
    require_same_images([first, second])
    return bootstrap_images(
        lambda weights: (
            metric_of(first, weights, metric, mean) - metric_of(second, weights, metric, mean)
        ),
        len(first.image),
        name=f"difference of {metric}",
        n_boot=n_boot,
        level=level,
        seed=seed,
        baseline=_baseline(mean),
    )


def require_same_images(runs: Sequence[ImageSums]) -> None:
    """Raise ValueError unless all rest on the same images in the same order."""
    for other in runs[1:]:
        if not torch.equal(runs[0].image, other.image):
            raise ValueError(
                f"paired comparisons need the same images in the same order, got "
                f"{len(runs[0].image)} and {len(other.image)} images, or other ones."
            )
        if not torch.equal(runs[0].n_tokens, other.n_tokens):
            raise ValueError("paired comparisons need the same tokens of each image.")


def _baseline(mean: Tensor | None) -> str:
    return "resampled" if mean is None else "frozen"


def _squared_sums(total: Tensor, weights: Tensor) -> Tensor:
    """Squared norm of the weighted sums, (W, L), a part of the weights at a time."""
    n_images, n_layers, width = total.shape
    flat = total.double().reshape(n_images, n_layers * width)
    rows = max(1, int(CHUNK_BYTES / (8 * n_layers * width)))
    parts = [
        (w @ flat).unflatten(1, (n_layers, width)).square().sum(2) for w in weights.split(rows)
    ]
    return torch.cat(parts)


def _around(sums: ImageSums, mean: Tensor) -> Tensor:
    """Squared distance of the tokens to a frozen mean, (I, L)."""
    if mean.shape != sums.total.shape[1:]:
        raise ValueError(
            f"mean must have shape {tuple(sums.total.shape[1:])}, got {tuple(mean.shape)}."
        )
    cross = torch.einsum("ild,ld->il", sums.total.double(), mean)
    squares = mean.square().sum(1) * sums.n_tokens.double()[:, None]
    return sums.squares.double() - 2 * cross + squares
