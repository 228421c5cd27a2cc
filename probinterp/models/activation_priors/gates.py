"""Gates of codes that may be exactly zero, and the prior rate at which they open."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from probinterp.models.activation_priors.interface import ActivationPrior
from probinterp.models.annealing import require_share
from probinterp.models.base import require_positive

LARGEST_START = 0.12  # rate at which gates start to open
GATE_SLOPE = 4.0
DECAY = 0.99  # of the running mean of the gates a step
FLOOR = 1e-2  # smallest prior rate in units of the wanted one: a rate of zero is absorbing


class GatedPrior(ActivationPrior):
    r"""Codes with a gate, open with probability :math:`\mathrm{sigmoid}(r_i h_i + c_i)`.

    Slope r and offset c are learned for every layer and latent. The prior rate
    :math:`\rho` starts at ``target_l0`` / H; with ``learn_rate`` it follows the gates after the
    warm-up in closed form,

    .. math:: \rho_i = \frac{n_0 \rho_0 + N \bar\pi_i}{n_0 + N},

    the mode under a Beta prior of mean :math:`\rho_0` worth :math:`n_0` tokens, with an exponential
    average of the gates over about 100 steps.

    Parameters
    ----------
    target_l0
        Active codes a token and layer that the prior expects, > 0 and less than H.
    learn_rate
        Whether the prior rates follow the gates.
    prior_tokens
        Weight :math:`n_0 \ge 0` of the starting rate in tokens.
    rate_warmup
        Share of the planned steps during which the rates stay.
    """

    start: Literal["normal"] = "normal"
    gate_slope: nn.Parameter
    gate_offset: nn.Parameter
    rate: Tensor
    mean_inclusion: Tensor

    def __init__(
        self,
        target_l0: float = 35.0,
        *,
        learn_rate: bool = True,
        prior_tokens: float = 1e4,
        rate_warmup: float = 0.3,
    ) -> None:
        super().__init__()
        require_share(rate_warmup=rate_warmup)
        if not target_l0 > 0:
            raise ValueError(f"target_l0 must be positive, got {target_l0}.")
        if not prior_tokens >= 0:
            raise ValueError(f"prior_tokens must not be negative, got {prior_tokens}.")
        self.target_l0, self.learn_rate = target_l0, learn_rate
        self.prior_tokens, self.rate_warmup = prior_tokens, rate_warmup
        self.wanted_rate = 0.0

    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Make gates and rates, (L, H) each."""
        require_positive(n_layers=n_layers, n_latents=n_latents)
        if not self.target_l0 < n_latents:
            raise ValueError(
                f"target_l0 must be less than n_latents = {n_latents}, got {self.target_l0}."
            )
        shape, wanted = (n_layers, n_latents), self.target_l0 / n_latents
        begin = min(LARGEST_START, 4 * wanted)
        self.wanted_rate = wanted
        self.gate_slope = nn.Parameter(torch.full(shape, GATE_SLOPE))
        self.gate_offset = nn.Parameter(torch.full(shape, math.log(begin / (1 - begin))))
        self.register_buffer("rate", torch.full(shape, wanted))
        self.register_buffer("mean_inclusion", torch.full(shape, wanted))

    def gate_logits(self, pre: Tensor) -> Tensor:
        r""":math:`r h + c`, (B, L, H)."""
        return self.gate_slope * pre + self.gate_offset

    def inclusion(self, pre: Tensor) -> Tensor:
        r"""Probability :math:`\pi` that a gate is open, (B, L, H)."""
        return self.gate_logits(pre).sigmoid()

    def update(self, pre: Tensor, n_total: int, progress: float) -> None:
        """Let the prior rates follow the gates."""
        if self.learn_rate and progress >= self.rate_warmup:
            self.follow(self.inclusion(pre), n_total)

    @torch.no_grad()
    def follow(self, inclusion: Tensor, n_total: int) -> None:
        """Move the prior rates towards gates (B, L, H) of a step of data of ``n_total`` tokens."""
        self.mean_inclusion.lerp_(inclusion.mean(0), 1 - DECAY)
        begin = self.prior_tokens * self.wanted_rate
        rate = (begin + n_total * self.mean_inclusion) / (self.prior_tokens + n_total)
        self.rate.copy_(rate.clamp(FLOOR * self.wanted_rate, 1 - 1e-6))

    @property
    def unused(self) -> Tensor:
        """Which latents have a prior rate at its floor: they are dead, (L, H) boolean."""
        return self.rate <= FLOOR * self.wanted_rate * (1 + 1e-6)
