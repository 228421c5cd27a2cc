"""A predictive law for proxies that give one prediction: normal residuals around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from probinterp.criticism.token_layout import TokenLayout

Covariance = Literal["full", "diagonal"]


@dataclass(frozen=True, eq=False)
class ResidualModel:
    r"""Covariance :math:`\Sigma_l` of the residuals of every layer, from images of their own.

    .. math:: y_l \mid x \sim N(\hat y_l, \Sigma_l), \qquad
        \hat\Sigma_l = \frac1n \sum_t r_{tl} r_{tl}^T

    Parameters
    ----------
    squares
        Mean square of the residuals of every image, shape (I, L, D), or (I, Y, L, D) with scales
        of their own for Y token types.
    types
        Token types that have scales of their own, or None where all share them.
    root
        Lower Cholesky factors of the correlations between channels, (L, D, D), or None where
        channels are independent.
    n_tokens
        Number of tokens of an image by token type.
    """

    squares: Tensor
    types: tuple[int, ...] | None
    root: Tensor | None
    n_tokens: dict[int, int]

    @property
    def n_images(self) -> int:
        """Number of images that it was estimated from."""
        return len(self.squares)

    def deviations(self, weights: Tensor | None = None) -> Tensor:
        """Standard deviations (L, D) or (Y, L, D), with weights (I,) of the images, sum 1."""
        if weights is None:
            return self.squares.mean(0).sqrt()
        return torch.tensordot(weights, self.squares, dims=1).sqrt()


def fit_residual_model(
    residuals: Tensor,
    layout: TokenLayout,
    *,
    covariance: Covariance = "full",
    by_type: bool = False,
) -> ResidualModel:
    r"""Estimate the residual covariance of every layer about zero.

    The residuals must come from images that trained nothing: a proxy fits its training images
    better than others, and the scale of their residuals makes new images look wrong.

    Parameters
    ----------
    residuals
        :math:`y - \hat y` of the calibration images, shape (N, L, D).
    layout
        How these tokens make up images.
    covariance
        ``"full"``: all channels of a layer; needs more tokens than channels. ``"diagonal"``:
        channels independent.
    by_type
        Scales of their own for each token type; one for all tokens of a layer by default.

    Raises
    ------
    ValueError
        If shapes do not fit, there are fewer than three images, or too few tokens.
    """
    if covariance not in get_args(Covariance):
        raise ValueError(f'covariance must be "full" or "diagonal", got {covariance!r}.')
    if residuals.ndim != 3 or residuals.shape[1] != layout.n_layers:
        raise ValueError(
            f"residuals must have shape (N, {layout.n_layers}, D), got {tuple(residuals.shape)}."
        )
    if layout.n_images < 3:
        raise ValueError(
            f"a residual model needs at least 3 calibration images, got {layout.n_images}."
        )
    r = layout.by_image(residuals)
    if by_type:
        each = [r[:, layout.slice_of(kind)].square().mean(1) for kind in layout.types]
        squares, types = torch.stack(each, 1), layout.types
    else:
        squares, types = r.square().mean(1), None
    model = ResidualModel(squares, types, None, layout.n_tokens_of)
    if covariance == "diagonal":
        return model
    standard = residuals / _of_tokens(model.deviations(), types, layout).clamp_min(
        torch.finfo(residuals.dtype).tiny
    )
    return ResidualModel(squares, types, _correlation_root(standard), layout.n_tokens_of)


class ResidualDraws:
    r"""Draws from a residual model around fixed predictions; iterate as often as you like.

    Every draw has scales of its own, from a Bayesian bootstrap over the I calibration images, so
    that replicates carry the uncertainty of estimated scales, whatever the dependence of the tokens
    of an image; the correlations between channels are kept at their estimate. The weights are

    .. math:: w \sim \mathrm{Dirichlet}\big(\tfrac{I - 2}I, \ldots, \tfrac{I - 2}I\big)

    with which the variance of a weighted mean is the unbiased :math:`s^2 / I`; the usual
    concentration 1 makes it :math:`(I - 1) / (I + 1)` times as large.

    Attributes
    ----------
    reference
        The draw at the estimated covariance.
    point_estimate
        Whether all draws have the estimated scales.
    n_obs
        Number of tokens of the calibration images.

    References
    ----------
    The Bayesian bootstrap (Rubin, 1981).
    """

    def __init__(
        self,
        prediction: Tensor,
        layout: TokenLayout,
        residual_model: ResidualModel,
        n_draws: int,
        seed: int,
        *,
        fixed: bool,
    ) -> None:
        self.residual_model, self.n_draws, self.seed = residual_model, n_draws, seed
        self.point_estimate = fixed
        self.n_obs = residual_model.n_images * sum(residual_model.n_tokens.values())
        self._prediction, self._layout = prediction, layout
        self.reference = self._draw(residual_model.deviations(), seed)

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[ResidualDraw]:
        model = self.residual_model
        generator = np.random.default_rng(self.seed)
        concentration = np.full(model.n_images, 1 - 2 / model.n_images)
        for _ in range(self.n_draws):
            seed = int(generator.integers(2**62))
            weights = torch.from_numpy(generator.dirichlet(concentration)).to(model.squares)
            yield self._draw(model.deviations(None if self.point_estimate else weights), seed)

    def _draw(self, deviations: Tensor, seed: int) -> ResidualDraw:
        types = self.residual_model.types
        scale = _of_tokens(deviations, types, self._layout).to(self._prediction)
        return ResidualDraw(self._prediction, scale, self.residual_model.root, seed)


class ResidualDraw:
    """Predictions with normal residuals of known covariance.

    Parameters
    ----------
    prediction
        Predictions, shape (N, L, D).
    scale
        Standard deviations of the residuals, broadcasting with the predictions.
    root
        Cholesky factors of the correlations between channels, (L, D, D), or None.
    seed
        Seed of the replicates.
    """

    def __init__(self, prediction: Tensor, scale: Tensor, root: Tensor | None, seed: int) -> None:
        self._prediction, self._scale, self._root, self._seed = prediction, scale, root, seed

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator(self._prediction.device).manual_seed(self._seed)

    def replicate(self) -> Tensor:
        """New outputs for the same inputs, (N, L, D)."""
        mean = self._prediction
        noise = torch.empty_like(mean).normal_(generator=self._generator)
        if self._root is not None:
            noise = (noise.transpose(0, 1) @ self._root.to(mean).mT).transpose(0, 1)
        return torch.addcmul(mean, noise, self._scale.expand_as(mean))

    def likelihood(self, x: Tensor) -> Distribution:
        """Normal law of the outputs, batch shape (N,), event shape (L, D), whatever ``x``."""
        mean, scale = self._prediction, self._scale.expand_as(self._prediction)
        if self._root is None:
            return Independent(Normal(mean, scale, validate_args=False), 2)
        return _ChannelNormal(mean, scale, self._root.to(mean))


class _ChannelNormal(Distribution):
    """Multivariate normal of the channels of every layer, which keeps one factor for all tokens."""

    arg_constraints: dict = {}

    def __init__(self, mean: Tensor, scale: Tensor, root: Tensor) -> None:
        self._mean, self._scale, self._root = mean, scale, root
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self._scale.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of every token, all layers together, (N,)."""
        standard = ((value - self._mean) / self._scale).transpose(0, 1).mT  # (L, D, N)
        whitened = torch.linalg.solve_triangular(self._root, standard, upper=False)
        log_det = self._root.diagonal(dim1=1, dim2=2).log().sum() + self._scale.log().sum((1, 2))
        n_values = self._mean[0].numel()
        return -(whitened.square().sum((0, 1)) + n_values * math.log(2 * math.pi)) / 2 - log_det


def residual_draws(
    prediction: Tensor,
    layout: TokenLayout,
    residual_model: ResidualModel,
    n_draws: int = 200,
    seed: int = 0,
    *,
    fixed: bool = False,
) -> ResidualDraws:
    r"""Draws for checks of a proxy that only predicts, :math:`y \mid x \sim N(\hat y, \Sigma_l)`.

    Parameters
    ----------
    prediction
        The proxy's predictions for the compared images, shape (N, L, D), floating point.
    layout
        How these tokens make up images.
    residual_model
        Covariances from a calibration split, see :func:`fit_residual_model`.
    n_draws
        Number of draws, S.
    seed
        Same seed, same draws.
    fixed
        Keep the scales at their estimate in all draws. Replicates then lack the uncertainty of
        the estimate and a correct model is rejected too often, unless calibration images are many
        more than those compared; a check says so.

    Raises
    ------
    ValueError
        If shapes, token types or numbers do not fit.

    Examples
    --------
    >>> import torch
    >>> layout = TokenLayout(torch.arange(50), torch.zeros(50, dtype=torch.int64), n_layers=2)
    >>> model = fit_residual_model(torch.randn(50, 2, 4), layout)
    >>> draws = residual_draws(torch.zeros(50, 2, 4), layout, model, n_draws=3)
    >>> [tuple(draw.replicate().shape) for draw in draws]
    [(50, 2, 4), (50, 2, 4), (50, 2, 4)]
    """
    expected = (len(layout.image), *residual_model.squares.shape[-2:])
    if tuple(prediction.shape) != expected or layout.n_layers != expected[1]:
        raise ValueError(
            f"prediction must have shape {expected} by its layout and the residual model, "
            f"got {tuple(prediction.shape)} and {layout.n_layers} layers."
        )
    if not isinstance(n_draws, int) or n_draws < 1:
        raise ValueError(f"n_draws must be a positive integer, got {n_draws!r}.")
    known = residual_model.types
    if known is not None and not set(layout.types) <= set(known):
        raise ValueError(
            f"the residual model knows the token types {known}, the layout has {layout.types}."
        )
    return ResidualDraws(prediction, layout, residual_model, n_draws, seed, fixed=fixed)


def _of_tokens(deviations: Tensor, types: tuple[int, ...] | None, layout: TokenLayout) -> Tensor:
    """Standard deviations that broadcast with (N, L, D)."""
    if types is None:
        return deviations
    kinds = torch.tensor(types, device=layout.token_type.device)
    which = torch.searchsorted(kinds, layout.token_type)
    return deviations[which.to(deviations.device)]


def _correlation_root(standard: Tensor) -> Tensor:
    """Cholesky factors of the correlations about zero of columns with mean square 1, (L, D, D)."""
    n_tokens, _, width = standard.shape
    if n_tokens <= width:
        raise ValueError(
            f"a full covariance of {width} channels needs more than {width} calibration tokens, "
            f"got {n_tokens}; take more images or covariance='diagonal'."
        )
    by_layer = standard.transpose(0, 1)
    correlation = by_layer.mT @ by_layer / n_tokens
    silent = correlation.diagonal(dim1=1, dim2=2) == 0  # channels that are predicted exactly
    root, failed = torch.linalg.cholesky_ex(correlation + torch.diag_embed(silent.to(standard)))
    if failed.any():
        raise ValueError(
            "the residuals of some layer are linearly dependent over channels: take more images "
            "or covariance='diagonal'."
        )
    return root
