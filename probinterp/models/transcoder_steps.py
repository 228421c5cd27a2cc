"""What a transcoder keeps of its training steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probinterp.models.activation_priors import ActivationPrior, CodeMoments
from probinterp.triangular_decoding import SparseCodes

LONGEST_MEMORY = 0.99  # decay of the running mean square a step


class Encoded(NamedTuple):
    """Codes of a batch: their pre-activations (B, L, H), and moments or the few active codes."""

    pre: Tensor
    moments: CodeMoments | None = None
    sparse: SparseCodes | None = None


class Step(NamedTuple):
    """One step: pre-activations (B, L, H), who fired (L, H), size of the data."""

    pre: Tensor
    fired: Tensor
    n_total: int


class ResidualSquares(nn.Module):
    """Running mean square of the training residuals by layer and channel.

    Parameters
    ----------
    n_layers, width
        L and D.
    """

    mean_square: Tensor
    n_steps: Tensor

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_square", torch.ones(n_layers, width))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, residual: Tensor) -> None:
        """Count the residuals (B, L, D) of a step in: the mean of all, later of about 100 steps."""
        decay = (self.n_steps / (self.n_steps + 1)).clamp_max(LONGEST_MEMORY)
        self.n_steps += 1
        self.mean_square.lerp_(residual.square().mean(0), (1 - decay).to(self.mean_square))


@torch.no_grad()
def fired(encoded: Encoded, activation: ActivationPrior) -> Tensor:
    """Which latents are active for any token, (L, H) boolean; more likely than not, if random."""
    pre, moments, sparse = encoded
    if not activation.is_point:
        return (activation.inclusion(pre) > 0.5).any(0)
    if sparse is not None:
        indices, values = (part.transpose(0, 1).flatten(1) for part in sparse)
        strongest = values.new_zeros(pre.shape[1:])
        return strongest.scatter_reduce(1, indices, values.abs(), "amax") > 0
    assert moments is not None
    return (moments.mean != 0).any(0)
