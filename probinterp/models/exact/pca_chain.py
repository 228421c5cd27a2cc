"""The Gibbs sampler of Bayesian probabilistic principal components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from probinterp.models.exact.draws import gamma_like, normal_like


class State(NamedTuple):
    """State of the chain; the first column of the coefficients is the mean of each feature."""

    coefficients: Tensor  # (..., G, 1 + K)
    noise_variance: Tensor  # (...)
    factors: Tensor  # (..., N, K)


class PCAPrior(NamedTuple):
    """Standard deviation of means and loadings; inverse gamma prior of the noise variance."""

    scale: float
    noise_shape: float
    noise_rate: float


class PCAChain:
    """Chains of many data sets side by side; see :class:`BayesianPCA` for the model.

    Parameters
    ----------
    x
        Data, shape (..., N, G), zero where masked.
    seen
        1 for cells that enter the fit, else 0, shape (..., N, G); None where all do.
    n_factors
        Number of factors, K.
    prior
        Prior of the parameters.
    """

    def __init__(self, x: Tensor, seen: Tensor | None, n_factors: int, prior: PCAPrior) -> None:
        self._x, self._seen, self.n_factors, self.prior = x, seen, n_factors, prior

    def states(self, source: torch.Generator, *, burn_in: int, thin: int) -> Iterator[State]:
        """Endless states of one chain per data set, started at the principal components."""
        state = self._start()
        for _ in range(burn_in):
            state = self.sweep(state, source)
        while True:
            for _ in range(thin):
                state = self.sweep(state, source)
            yield state

    def _start(self) -> State:
        """Maximum likelihood estimate (Tipping and Bishop), masked cells at the feature mean."""
        x = self._x
        seen = torch.ones_like(x) if self._seen is None else self._seen
        mean = x.sum(-2) / seen.sum(-2).clamp(min=1)
        centred = (x - mean.unsqueeze(-2)) * seen
        values, vectors = torch.linalg.eigh(centred.mT @ centred / x.shape[-2])
        noise = values[..., : -self.n_factors].mean(-1).clamp(min=1e-6 * float(x.var()) + 1e-12)
        spread = (values[..., -self.n_factors :] - noise.unsqueeze(-1)).clamp(min=0).sqrt()
        loadings = vectors[..., -self.n_factors :] * spread.unsqueeze(-2)
        coefficients = torch.cat([mean.unsqueeze(-1), loadings], -1)
        return State(coefficients, noise, x[..., : self.n_factors] * 0.0)

    def sweep(self, state: State, source: torch.Generator) -> State:
        """Update every unknown once; leaves the posterior invariant."""
        factors = self._draw_factors(state, source)
        coefficients, factors = self._rescale(state.coefficients, factors, source)
        coefficients = self._draw_coefficients(factors, state.noise_variance, source)
        residual = self._x - augmented(factors) @ coefficients.mT
        if self._seen is None:
            n_cells = torch.full_like(state.noise_variance, residual.shape[-2:].numel())
        else:
            residual, n_cells = residual * self._seen, self._seen.sum((-2, -1))
        rate = self.prior.noise_rate + 0.5 * residual.square().sum((-2, -1))
        noise_variance = rate / gamma_like(self.prior.noise_shape + 0.5 * n_cells, source)
        return State(coefficients, noise_variance, factors)

    def _draw_factors(self, state: State, source: torch.Generator) -> Tensor:
        mean, loadings = state.coefficients[..., :1].mT, state.coefficients[..., 1:]
        scaled = loadings / state.noise_variance[..., None, None]
        if self._seen is None:
            residual = self._x - mean
            precision = (loadings.mT @ scaled).unsqueeze(-3)  # the same in every row
        else:
            residual = (self._x - mean) * self._seen
            outer = (loadings.unsqueeze(-1) * scaled.unsqueeze(-2)).flatten(-2)
            precision = (self._seen @ outer).unflatten(-1, (self.n_factors, self.n_factors))
        identity = torch.eye(self.n_factors, dtype=mean.dtype, device=mean.device)
        return _normal_given(residual @ scaled, precision + identity, source)

    def _draw_coefficients(
        self, factors: Tensor, noise_variance: Tensor, source: torch.Generator
    ) -> Tensor:
        z = augmented(factors)
        scaled = z / noise_variance[..., None, None]
        if self._seen is None:
            precision = (z.mT @ scaled).unsqueeze(-3)  # the same for every feature
        else:
            outer = (z.unsqueeze(-1) * scaled.unsqueeze(-2)).flatten(-2)
            precision = (self._seen.mT @ outer).unflatten(-1, (z.shape[-1], z.shape[-1]))
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        prior = identity / self.prior.scale**2
        return _normal_given(self._x.mT @ scaled, precision + prior, source)

    def _rescale(
        self, coefficients: Tensor, factors: Tensor, source: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        r"""Multiply each factor by :math:`\sqrt u` and divide its loadings by it.

        .. math:: p(u) \propto u^{(N - G) / 2 - 1}
            \exp\Big(-\frac u2 |z_k|^2 - \frac1{2us^2} |w_k|^2\Big)

        by Metropolis-Hastings, with the gamma distribution of the factors alone as proposal.
        """
        excess = self._x.shape[-2] - self._x.shape[-1]
        if excess <= 0:
            return coefficients, factors  # no proposal; the other conditionals suffice
        loadings = coefficients[..., 1:]
        size = factors.square().sum(-2)
        proposed = 2 * gamma_like(torch.full_like(size, 0.5 * excess), source) / size
        penalty = loadings.square().sum(-2) / (2 * self.prior.scale**2)
        log_ratio = penalty * (1 - 1 / proposed)
        uniform = torch.rand(size.shape, generator=source, dtype=size.dtype, device=size.device)
        root = torch.where(uniform.log() < log_ratio, proposed, 1.0).sqrt().unsqueeze(-2)
        return torch.cat([coefficients[..., :1], loadings / root], -1), factors * root


def augmented(factors: Tensor) -> Tensor:
    """Factors with a leading column of ones, shape (..., N, 1 + K)."""
    return torch.cat([torch.ones_like(factors[..., :1]), factors], -1)


def _normal_given(linear: Tensor, precision: Tensor, source: torch.Generator) -> Tensor:
    """Draw from N(precision^-1 linear, precision^-1), for ``linear`` of shape (..., M, K)."""
    root = torch.linalg.cholesky(precision)
    half = torch.linalg.solve_triangular(root, linear.unsqueeze(-1), upper=False)
    noise = normal_like(half, source)
    return torch.linalg.solve_triangular(root.mT, half + noise, upper=True).squeeze(-1)
