"""Transcoders and tokens that several files of tests use."""

import math

import torch
from pyro import distributions as dist
from torch import nn

from probinterp.models import ActivationBatch, CrossLayerTranscoder
from probinterp.models.activation_priors import (
    AbsTopK,
    ActivationPrior,
    CodeMoments,
    JumpReLU,
    ReLUTopK,
)

N, L, D, H = 60, 3, 5, 8


class GaussianCodes(ActivationPrior):
    """Standard normal codes with a normal posterior: the simplest random codes."""

    def __init__(self, scale=0.3):
        super().__init__()
        self.scale = scale

    def allocate(self, n_layers, n_latents):
        shape = (n_layers, n_latents)
        self.log_scale = nn.Parameter(torch.full(shape, math.log(self.scale)))

    def moments(self, pre):
        scale = self.log_scale.exp().expand_as(pre)
        slab = 0.5 * (pre.square() + scale.square() - 1) - scale.log()
        return CodeMoments(pre, scale.square(), torch.zeros_like(slab[..., 0]), slab.sum(2))

    def hard(self, pre):
        return pre

    def prior(self):
        return dist.Normal(torch.zeros_like(self.log_scale), 1.0).to_event(2)

    def posterior(self, pre):
        return dist.Normal(pre, self.log_scale.exp().expand_as(pre)).to_event(2)


ACTIVATIONS = {
    "relu": lambda: ReLUTopK(2),
    "abs": lambda: AbsTopK(2),
    "jump": lambda: JumpReLU(0.1, target_l0=2.0),
    "gaussian": GaussianCodes,
}


def tokens(n=N, seed=0, device="cpu"):
    """Outputs that depend on the inputs of all earlier layers, in units of their own."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(L, L, D, D, generator=torch.Generator().manual_seed(1))
    inputs = torch.randn(n, L, D, generator=generator) + torch.arange(D)
    outputs = [sum((inputs[:, i] @ maps[i, j]).relu() for i in range(j + 1)) for j in range(L)]
    x = 7 * torch.stack(outputs, 1) + torch.randn(n, L, D, generator=generator)
    image = torch.arange(n) // 5
    return ActivationBatch(x, 0.1 * inputs, image, torch.arange(n) % 3)


def made(name="relu", seed=0, **options):
    torch.manual_seed(seed)
    model = CrossLayerTranscoder(L, D, H, activation=ACTIVATIONS[name](), **options)
    model.initialize(tokens(), N)
    with torch.no_grad():
        for parameter in model.decoders.parameters():
            parameter.normal_(0, 0.3)
        if model.outputs.skip is not None:
            model.outputs.skip.normal_(0, 0.3)
    model.initialized.fill_(True)
    return model.eval()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)
