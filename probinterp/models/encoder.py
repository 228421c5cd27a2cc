"""Amortised posterior of the factors."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probinterp.nn import mlp

MIN_SCALE = 1e-4
MAX_LOG_VARIANCE = 6.0


class GaussianEncoder(nn.Module):
    r"""Normal posterior of the factors, :math:`q(z \mid x) = N(\mu(x), L(x) L(x)^\top)`.

    Two hidden layers with ReLU, then one linear map for the mean and one for the scale.

    Parameters
    ----------
    n_features
        Number of inputs, G.
    n_factors
        Number of factors, K.
    n_hidden
        Width of both hidden layers, H.
    full
        Whether L is a lower triangle, so that factors of one observation may be dependent a
        posteriori, or diagonal.
    """

    def __init__(
        self, n_features: int, n_factors: int, n_hidden: int, *, full: bool = False
    ) -> None:
        super().__init__()
        self.trunk = mlp([n_features, n_hidden, n_hidden])
        self.loc = nn.Linear(n_hidden, n_factors)
        self.log_variance = nn.Linear(n_hidden, n_factors)
        n_below = n_factors * (n_factors - 1) // 2
        self.below = nn.Linear(n_hidden, n_below) if full and n_below else None
        self.n_factors = n_factors

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Posterior of the factors of ``x`` (B, G), event shape (K,)."""
        hidden = self.trunk(x).relu()
        loc = at_least_float32(self.loc(hidden))
        # a log variance of 6 is far wider than any prior here; beyond, exp() overflows
        log_variance = at_least_float32(self.log_variance(hidden)).clamp(max=MAX_LOG_VARIANCE)
        scale = (0.5 * log_variance).exp() + MIN_SCALE
        if self.below is None:
            return dist.Normal(loc, scale).to_event(1)
        rows, columns = torch.tril_indices(self.n_factors, self.n_factors, -1, device=x.device)
        lower = torch.diag_embed(scale).index_put(
            (torch.arange(len(x), device=x.device).unsqueeze(1), rows, columns),
            scale[:, rows] * at_least_float32(self.below(hidden)),
        )
        return dist.MultivariateNormal(loc, scale_tril=lower)

    @torch.no_grad()
    def forget(self, factors: list[int]) -> None:
        """Give these factors a standard normal posterior whatever is seen."""
        for head in (self.loc, self.log_variance):
            head.weight[factors] = 0
            head.bias[factors] = 0
        if self.below is not None:
            pairs = torch.tril_indices(self.n_factors, self.n_factors, -1)
            involved = torch.isin(pairs, torch.tensor(factors)).any(0)
            self.below.weight[involved] = 0
            self.below.bias[involved] = 0


def at_least_float32(x: Tensor) -> Tensor:
    """Undo the bfloat16 of an autocast region; densities are computed in full precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
