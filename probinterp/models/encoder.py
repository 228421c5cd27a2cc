"""Amortised posterior of the factors."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probinterp.nn import mlp

MIN_SCALE = 1e-4
MAX_LOG_VARIANCE = 6.0


class GaussianEncoder(nn.Module):
    r"""Diagonal normal :math:`q(z \mid x) = N(\mu(x), \mathrm{diag}\,s^2(x))`.

    Two hidden layers with ReLU and one linear map each for the mean and the log variance.

    Parameters
    ----------
    n_features
        Number of inputs, G.
    n_factors
        Number of factors, K.
    n_hidden
        Width of both hidden layers, H.
    """

    def __init__(self, n_features: int, n_factors: int, n_hidden: int) -> None:
        super().__init__()
        self.trunk = mlp([n_features, n_hidden, n_hidden])
        self.loc = nn.Linear(n_hidden, n_factors)
        self.log_variance = nn.Linear(n_hidden, n_factors)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Posterior of the factors of ``x`` (B, G), event shape (K,)."""
        hidden = self.trunk(x).relu()
        # a log variance of 6 is far wider than any prior here; beyond, exp() overflows
        log_variance = at_least_float32(self.log_variance(hidden)).clamp(max=MAX_LOG_VARIANCE)
        scale = (0.5 * log_variance).exp() + MIN_SCALE
        return dist.Normal(at_least_float32(self.loc(hidden)), scale).to_event(1)


def at_least_float32(x: Tensor) -> Tensor:
    """Undo the bfloat16 of an autocast region; densities are computed in full precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
