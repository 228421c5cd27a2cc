"""Codes that keep the k strongest pre-activations of a token and layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from probinterp.models.activation_priors.interface import ActivationPrior, CodeMoments
from probinterp.models.base import require_positive
from probinterp.triangular_decoding import SparseCodes


class ReLUTopK(ActivationPrior):
    r"""The k largest positive pre-activations; fewer than k codes may be active.

    .. math:: z = \mathrm{relu}(h)\, 1[\mathrm{relu}(h) \text{ among the } k \text{ largest}]

    The gradient passes through the codes that are kept and not zero.

    Parameters
    ----------
    k
        Codes a token and layer that may be active.

    References
    ----------
    Scaling and Evaluating Sparse Autoencoders (Gao et al., 2024), section 2.3.
    """

    is_point = True
    start: Literal["zero"] = "zero"

    def __init__(self, k: int) -> None:
        super().__init__()
        require_positive(k=k)
        self.k = self.n_active = k

    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Nothing to make; k must not exceed the number of latents."""
        _require_few(self.k, n_latents)

    def select(self, pre: Tensor) -> Tensor:
        """The k largest ones."""
        return pre.detach().topk(self.k, dim=-1, sorted=False).indices

    def selected(self, pre: Tensor) -> Tensor:
        """Zero where a pre-activation is negative."""
        return pre.relu()

    def select_dead(self, pre: Tensor, dead: Tensor, k: int) -> Tensor:
        """The k largest ones of dead latents."""
        return pre.detach().masked_fill(~dead, -torch.inf).topk(k, dim=-1, sorted=False).indices

    def moments(self, pre: Tensor) -> CodeMoments:
        """The codes; they have no variance."""
        return CodeMoments(self.hard(pre))

    def hard(self, pre: Tensor) -> Tensor:
        """The codes, (B, L, H)."""
        indices = self.select(pre)
        return SparseCodes(indices, self.selected(pre.gather(-1, indices))).dense(pre.shape[-1])

    def initial_bias(self, pre: Tensor) -> Tensor:
        """Centre the pre-activations."""
        return -pre.mean(0)


class AbsTopK(ActivationPrior):
    r"""The k pre-activations of largest absolute value, with their signs; exactly k are active.

    .. math:: z = h\, 1[|h| \text{ among the } k \text{ largest}]

    The gradient passes through the codes that are kept.

    Parameters
    ----------
    k
        Active codes a token and layer.
    """

    is_point = True
    start: Literal["zero"] = "zero"

    def __init__(self, k: int) -> None:
        super().__init__()
        require_positive(k=k)
        self.k = self.n_active = k

    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Nothing to make; k must not exceed the number of latents."""
        _require_few(self.k, n_latents)

    def select(self, pre: Tensor) -> Tensor:
        """The k of largest absolute value."""
        return pre.detach().abs().topk(self.k, dim=-1, sorted=False).indices

    def selected(self, pre: Tensor) -> Tensor:
        """The pre-activations themselves."""
        return pre

    def select_dead(self, pre: Tensor, dead: Tensor, k: int) -> Tensor:
        """The k of largest absolute value among dead latents."""
        strength = pre.detach().abs().masked_fill(~dead, -1.0)
        return strength.topk(k, dim=-1, sorted=False).indices

    def moments(self, pre: Tensor) -> CodeMoments:
        """The codes; they have no variance."""
        return CodeMoments(self.hard(pre))

    def hard(self, pre: Tensor) -> Tensor:
        """The codes, (B, L, H)."""
        indices = self.select(pre)
        return SparseCodes(indices, self.selected(pre.gather(-1, indices))).dense(pre.shape[-1])

    def initial_bias(self, pre: Tensor) -> Tensor:
        """Centre the pre-activations."""
        return -pre.mean(0)


def _require_few(k: int, n_latents: int) -> None:
    if k > n_latents:
        raise ValueError(f"k must be at most n_latents = {n_latents}, got {k}.")
