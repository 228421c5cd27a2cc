"""Activations grouped by image, beside what a draw predicts of them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution

from probinterp.criticism.token_layout import TokenLayout


class TokenMoments:
    """Predictive mean and variance of all tokens, (I, T, L, D), computed when first asked for.

    Parameters
    ----------
    layout
        How the tokens make up images.
    likelihood
        Distribution of the activations, with ``mean`` and ``variance`` of shape (N, L, D).
    """

    def __init__(self, layout: TokenLayout, likelihood: Distribution) -> None:
        self.layout, self._likelihood = layout, likelihood

    @cached_property
    def mean(self) -> Tensor:
        """Predictive mean."""
        return self.layout.by_image(self._likelihood.mean)

    @cached_property
    def deviation(self) -> Tensor:
        """Predictive standard deviation."""
        return self.layout.by_image(self._likelihood.variance.sqrt())


class TokenResiduals:
    r"""Activations :math:`y` with their predictions :math:`\hat y`, of one token type or of all.

    Every tensor has shape (I, T, L, D) and is computed when first asked for, once for all
    discrepancies.

    Parameters
    ----------
    x
        Activations by image, (I, T, L, D).
    moments
        What a draw predicts of them.
    tokens
        Which of the T tokens.
    """

    def __init__(self, x: Tensor, moments: TokenMoments, tokens: slice = slice(None)) -> None:
        self._x, self._moments, self._tokens = x, moments, tokens
        self._parts: dict[int, TokenResiduals] = {}

    def of(self, kind: int) -> TokenResiduals:
        """Tokens of one type."""
        if kind not in self._parts:
            tokens = self._moments.layout.slice_of(kind)
            self._parts[kind] = TokenResiduals(self._x, self._moments, tokens)
        return self._parts[kind]

    @property
    def x(self) -> Tensor:
        """Activations."""
        return self._x[:, self._tokens]

    @property
    def mean(self) -> Tensor:
        """Predictive mean."""
        return self._moments.mean[:, self._tokens]

    @cached_property
    def residual(self) -> Tensor:
        r"""Difference :math:`r = y - \hat y`."""
        return self.x - self.mean

    @cached_property
    def standardised(self) -> Tensor:
        r"""Residual over predictive standard deviation, :math:`e = r / \sqrt v`; 0 for 0 / 0."""
        scaled = self.residual / self._moments.deviation[:, self._tokens]
        return torch.where(self.residual == 0, 0.0, scaled)
