"""Prior distributions of the factors z."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from probinterp.configuration import Configured


class FactorPrior(Configured, nn.Module, ABC):
    """Distribution of one observation's factors, event shape (K,)."""

    @abstractmethod
    def forward(self) -> dist.TorchDistribution:
        """Prior of z."""


class StandardNormalPrior(FactorPrior):
    r"""Independent factors, :math:`z \sim N(0, I_K)`.

    Parameters
    ----------
    n_factors
        Number of factors, K.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, n_factors: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(n_factors), persistent=False)
        self.register_buffer("scale", torch.ones(n_factors), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Prior of z."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class LowRankNormalPrior(FactorPrior):
    r"""Correlated factors, :math:`z \sim N(0, C C^\top + I_K)` with C of shape (K, R).

    Parameters
    ----------
    n_factors
        Number of factors, K.
    rank
        Number of columns of C, R >= 1.

    References
    ----------
    Identifiable Deep Generative Models via Sparse Decoding (Moran et al., 2022), section 5.
    """

    loc: Tensor
    identity: Tensor

    def __init__(self, n_factors: int, rank: int = 2) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}.")
        self.factor = nn.Parameter(0.1 * torch.randn(n_factors, rank))
        self.register_buffer("loc", torch.zeros(n_factors), persistent=False)
        self.register_buffer("identity", torch.eye(n_factors), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Prior of z."""
        covariance = self.factor @ self.factor.mT + self.identity
        return dist.MultivariateNormal(self.loc, scale_tril=torch.linalg.cholesky(covariance))


class CorrelatedNormalPrior(FactorPrior):
    r"""Factors of unit variance with learned correlations, :math:`z \sim N(0, T T^\top)`.

    T is a unit lower triangle whose rows are scaled to norm 1, so that the covariance is a
    correlation matrix and the factors keep their scale. It starts at independence.

    Parameters
    ----------
    n_factors
        Number of factors, K.
    """

    loc: Tensor
    identity: Tensor

    def __init__(self, n_factors: int) -> None:
        super().__init__()
        self.below = nn.Parameter(torch.zeros(n_factors, n_factors))  # strict lower triangle used
        self.register_buffer("loc", torch.zeros(n_factors), persistent=False)
        self.register_buffer("identity", torch.eye(n_factors), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Prior of z."""
        lower = normalize(self.below.tril(-1) + self.identity, dim=1)
        return dist.MultivariateNormal(self.loc, scale_tril=lower)
