"""Latents that have stopped firing, and the loss that brings them back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from probinterp.models.activation_priors import ActivationPrior
from probinterp.models.transcoder_decoder import TriangularDecoder
from probinterp.triangular_decoding import SparseCodes

DEAD_TOKENS = 10_000_000
DEAD_SHARE = 0.05


class DeadLatents(nn.Module):
    """How many tokens ago each latent fired last.

    A latent is dead that has not fired for 10 million tokens or a twentieth of the planned ones,
    whichever is less.

    Parameters
    ----------
    n_layers, n_latents
        L and H.
    """

    tokens_since_fired: Tensor
    n_seen: Tensor
    patience: Tensor

    def __init__(self, n_layers: int, n_latents: int) -> None:
        super().__init__()
        shape = (n_layers, n_latents)
        self.register_buffer("tokens_since_fired", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("patience", torch.tensor(float(DEAD_TOKENS)))

    @property
    def dead(self) -> Tensor:
        """Which latents are dead, (L, H) boolean."""
        return self.tokens_since_fired > self.patience

    @torch.no_grad()
    def count(self, fired: Tensor, n_tokens: int, progress: float) -> None:
        """Note which latents (L, H) fired among the tokens of a step."""
        self.n_seen += n_tokens
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.masked_fill_(fired, 0)
        if progress > 0:
            planned = self.n_seen.to(self.patience) / progress
            self.patience.copy_((DEAD_SHARE * planned).clamp_max(DEAD_TOKENS))

    def auxiliary_loss(
        self,
        activation: ActivationPrior,
        decoder: TriangularDecoder,
        pre: Tensor,
        at: Callable[[Tensor], Tensor],
        residual: Tensor,
    ) -> Tensor | None:
        r"""Error with which the strongest dead latents predict what the others leave, by target.

        .. math:: \min\Big(\frac{n_\text{dead}}{D / 2}, 1\Big)
                  \frac{\sum \lVert \hat e - e \rVert^2}{\sum \lVert e - \bar e \rVert^2}

        Parameters
        ----------
        activation
            Says which codes dead latents have.
        decoder
            Decoders; no bias is added.
        pre
            Pre-activations, (B, L, H).
        at
            Gives the pre-activations of selected latents, both (B, L, k).
        residual
            Residuals e, (B, L, D); no gradient passes through them.

        Returns
        -------
        Tensor or None
            Sum over the layers, (); None where the activation has no such loss or none is dead.

        References
        ----------
        Scaling and Evaluating Sparse Autoencoders (Gao et al., 2024), appendix A.2.
        """
        dead = self.dead
        if dead.device.type == "cpu" and not dead.any():  # elsewhere looking would stall the queue
            return None
        width = residual.shape[2]
        chosen = activation.select_dead(pre, dead, max(1, min(width // 2, dead.shape[1])))
        if chosen is None:
            return None
        really = dead.expand(len(pre), -1, -1).gather(2, chosen)
        codes = SparseCodes(chosen, activation.selected(at(chosen)).where(really, 0.0))
        error = residual.detach()
        missed = (decoder.decode_sparse(codes).to(error.dtype) - error).square().sum((0, 2))
        total = (error - error.mean(0)).square().sum((0, 2))
        n_dead = dead.sum(1)
        n_dead = n_dead.cumsum(0) if decoder.cross_layer else n_dead
        share = (2 * n_dead / width).clamp_max(1.0)
        return (share * missed / total.clamp_min(torch.finfo(total.dtype).tiny)).sum()
