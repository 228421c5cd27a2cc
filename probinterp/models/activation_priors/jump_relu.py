"""Codes with a learned threshold for every latent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from probinterp.models.activation_priors.interface import ActivationPrior, CodeMoments
from probinterp.models.base import require_positive

LATENTS_PER_BLOCK = 2**24  # entries of which quantiles are taken at once


class JumpReLU(ActivationPrior):
    r"""Pre-activations above a learned threshold.

    .. math:: z = h\, 1[h > \theta], \quad
        \frac{\partial z}{\partial h} = 1[h > \theta], \quad
        \frac{\partial z}{\partial \theta} = -\frac{\theta}{\varepsilon}\,
        1[|h - \theta| < \varepsilon / 2]

    The thresholds :math:`\theta = \exp(\text{log_threshold})`, one a layer and latent, get the
    pseudo-gradient of a rectangular kernel of width :math:`\varepsilon`. Two losses keep codes
    sparse and alive, summed over layers and latents,

    .. math:: \lambda_1 \tanh(c\, \lVert W_i \rVert z_i)
        + \lambda_2\, \mathrm{relu}(\theta_i - h_i) \lVert W_i \rVert,

    with :math:`W_i` all decoders of a latent; :math:`\lambda_1` grows linearly from 0 over the
    planned steps. Threshold and bandwidth presuppose inputs of norm :math:`\sqrt D`, which the
    transcoder gives them.

    Parameters
    ----------
    threshold
        Where thresholds start, > 0.
    bandwidth
        Width of the kernel, :math:`\varepsilon > 0`.
    sparsity
        :math:`\lambda_1 \ge 0`.
    tanh_scale
        c > 0.
    dead_penalty
        :math:`\lambda_2 \ge 0`.
    target_l0
        Active codes a token and layer that the biases are started for: latents fire at a rate of
        four times this over H, at most one half.

    References
    ----------
    Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders
    (Rajamanoharan et al., 2024); Circuit Tracing (Ameisen et al., 2025), appendix on training.
    """

    is_point = True
    start: Literal["uniform"] = "uniform"
    log_threshold: nn.Parameter

    def __init__(
        self,
        threshold: float = 0.03,
        bandwidth: float = 1.0,
        *,
        sparsity: float = 1.0,
        tanh_scale: float = 4.0,
        dead_penalty: float = 3e-5,
        target_l0: float = 35.0,
    ) -> None:
        super().__init__()
        positive = {"threshold": threshold, "bandwidth": bandwidth, "tanh_scale": tanh_scale}
        for name, value in (positive | {"target_l0": target_l0}).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        for name, value in {"sparsity": sparsity, "dead_penalty": dead_penalty}.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        self.initial, self.bandwidth, self.target_l0 = threshold, bandwidth, target_l0
        self.sparsity, self.tanh_scale, self.dead_penalty = sparsity, tanh_scale, dead_penalty
        self.ramp = 1.0

    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Make the thresholds, (L, H)."""
        require_positive(n_layers=n_layers, n_latents=n_latents)
        shape = (n_layers, n_latents)
        self.log_threshold = nn.Parameter(torch.full(shape, math.log(self.initial)))

    @property
    def threshold(self) -> Tensor:
        r""":math:`\theta`, (L, H)."""
        return self.log_threshold.exp()

    def moments(self, pre: Tensor) -> CodeMoments:
        """The codes; they have no variance."""
        return CodeMoments(self.hard(pre))

    def hard(self, pre: Tensor) -> Tensor:
        """The codes, (B, L, H)."""
        codes: Tensor = _Jump.apply(pre, self.threshold.to(pre.dtype), self.bandwidth)
        return codes

    def penalty(self, pre: Tensor, decoder_norm: Callable[[], Tensor]) -> Tensor:
        """Both losses by token, (B,)."""
        norm = decoder_norm()
        reach = torch.tanh(self.tanh_scale * norm * self.hard(pre))
        below = (self.threshold - pre).relu() * norm
        weighted = self.ramp * self.sparsity * reach + self.dead_penalty * below
        return weighted.sum((1, 2))

    def initial_bias(self, pre: Tensor) -> Tensor:
        """Biases with which each latent fires at the starting rate, (L, H)."""
        rate = min(0.5, 4 * self.target_l0 / pre.shape[2])
        rows = max(1, LATENTS_PER_BLOCK // pre[0].numel())
        return self.threshold.detach() - pre[:rows].quantile(1 - rate, dim=0)

    def anneal(self, progress: float) -> None:
        """Raise the weight of the sparsity loss."""
        self.ramp = progress


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pre, threshold = ctx.saved_tensors
        d_pre = torch.where(pre > threshold, gradient, 0.0)
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        d_threshold = -threshold / ctx.bandwidth * torch.where(near, gradient, 0.0).sum(0)
        return d_pre, d_threshold, None
