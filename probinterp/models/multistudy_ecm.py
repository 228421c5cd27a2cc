"""Expectation and conditional maximisation for linear multi-study factor analysis."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from probinterp.models.base import Batch, require_positive
from probinterp.models.multistudy_components import MultiStudyScatter, joint_components
from probinterp.models.multistudy_factor_analysis import MultiStudyFactorAnalysis
from probinterp.study_effects import rows_by_study


class HasBatch(Protocol):
    """Data that can be had as one batch."""

    def batch(self) -> Batch:
        """All observations."""


class EcmHistory(NamedTuple):
    """Record of :func:`fit_ecm`.

    Attributes
    ----------
    log_likelihood
        Log likelihood per observation, in nats, at the start and after every iteration of the
        best start.
    converged
        Whether the last increase was below the tolerance.
    starts
        Log likelihood that each start reached.
    """

    log_likelihood: Tensor
    converged: bool
    starts: tuple[float, ...]

    @property
    def n_iter(self) -> int:
        """Iterations of the best start."""
        return len(self.log_likelihood) - 1


@torch.no_grad()
def fit_ecm(
    model: MultiStudyFactorAnalysis,
    data: Batch | HasBatch,
    *,
    max_iter: int = 5000,
    tol: float = 1e-7,
    n_starts: int = 1,
    seed: int = 0,
) -> EcmHistory:
    r"""Maximum likelihood of multi-study factor analysis, in place.

    The E-step finds the moments :math:`C^m_{xz} = \frac{1}{n_m} \sum_i (x_i - \mu_m) E[z_i]^\top`
    and :math:`C^m_{zz} = \frac{1}{n_m} \sum_i E[z_i z_i^\top]`, zero outside the gate; then all
    loadings given the noise, and the noise given them, have closed forms:

    .. math::
        w_j = \Big(\sum_m \tfrac{n_m}{\psi_{mj}} C^m_{zz}\Big)^{-1}
              \sum_m \tfrac{n_m}{\psi_{mj}} (C^m_{xz})_j, \quad
        \psi_{mj} = (S_m)_{jj} - 2 w_j^\top (C^m_{xz})_j + w_j^\top C^m_{zz} w_j

    The means are those of the studies. No step lowers the log likelihood.

    Parameters
    ----------
    model
        Model to fit; its present parameters do not matter.
    data
        Observations with their studies: a batch, or data with a method ``batch()``.
    max_iter
        Largest number of iterations.
    tol
        Increase of the log likelihood per observation, in nats, below which it ends.
    n_starts
        Starts: the first from components that the studies have in common, the others random. The
        one with the largest log likelihood is kept.
    seed
        Seed of the random starts.

    Returns
    -------
    EcmHistory
        Log likelihoods and whether they converged.

    Raises
    ------
    ValueError
        If a study has fewer than two observations, entries are masked or not finite, or an option
        makes no sense.

    References
    ----------
    Multi-study factor analysis (De Vito, Bellio, Trippa and Parmigiani, 2019), section 3.

    Notes
    -----
    The authors maximise over Phi, each Lambda_m and Psi_m in turn; we maximise over all loadings at
    once. A noise variance is at least 0.5 % of its feature's variance in the study: where a study
    has few observations the likelihood has no maximum without such a bound (Heywood cases).
    """
    require_positive(max_iter=max_iter, n_starts=n_starts)
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")
    scatter = _scatter(model, data if isinstance(data, Batch) else data.batch())
    generator = torch.Generator().manual_seed(seed)
    starts = [_State(*joint_components(scatter, model.block))]
    starts += [_random(scatter, len(model.block), generator) for _ in range(n_starts - 1)]
    runs = [_run(start, scatter, model.gate, max_iter, tol) for start in starts]
    best, trace, converged = max(runs, key=lambda run: run[1][-1])
    model.set_parameters(scatter.mean, best.loadings, best.noise)
    model.initialized.fill_(True)
    final = tuple(run[1][-1] for run in runs)
    return EcmHistory(torch.tensor(trace, dtype=torch.float64), converged, final)


class _State(NamedTuple):
    """Loadings (G, K) and noise variances (M, G)."""

    loadings: Tensor
    noise: Tensor


class _Moments(NamedTuple):
    """Expected moments C_xz (M, G, K) and C_zz (M, K, K)."""

    cross: Tensor
    square: Tensor


def _scatter(model: MultiStudyFactorAnalysis, batch: Batch) -> MultiStudyScatter:
    x = batch.x if batch.x.layout == torch.strided else batch.x.to_dense()
    batch = model.labelled(batch._replace(x=x))
    if not torch.isfinite(x).all():
        raise ValueError("x must be finite, got NaN or infinite entries.")
    studies = rows_by_study(batch, model.n_studies)
    if small := [m for m, rows in enumerate(studies) if len(rows.x) < 2]:
        raise ValueError(f"studies {small} have one observation: nothing varies within them.")
    return MultiStudyScatter.of(studies)


def _random(scatter: MultiStudyScatter, n_factors: int, generator: torch.Generator) -> _State:
    """Random loadings that explain half of every feature's variance on average."""
    pooled = scatter.size @ scatter.variance / scatter.size.sum()
    shape = (len(pooled), n_factors)
    normal = torch.randn(shape, generator=generator, dtype=pooled.dtype).to(pooled.device)
    loadings = normal * (pooled / (2 * n_factors)).sqrt().unsqueeze(1)
    return _State(loadings, torch.maximum(scatter.variance / 2, scatter.floor))


def _run(
    state: _State, scatter: MultiStudyScatter, gate: Tensor, max_iter: int, tol: float
) -> tuple[_State, list[float], bool]:
    value, moments = _expectation(state, scatter, gate)
    trace = [value]
    for _ in range(max_iter):
        state = _maximisation(state, moments, scatter)
        value, moments = _expectation(state, scatter, gate)
        trace.append(value)
        if trace[-1] - trace[-2] < tol:
            return state, trace, True
    return state, trace, False


def _expectation(state: _State, scatter: MultiStudyScatter, gate: Tensor) -> tuple[float, _Moments]:
    """Log likelihood per observation, and the moments of the factors."""
    gated = state.loadings * gate.unsqueeze(1)  # (M, G, K)
    weighted = gated / state.noise.unsqueeze(-1)
    identity = torch.eye(gate.shape[1], dtype=gated.dtype, device=gated.device)
    lower = torch.linalg.cholesky(identity + weighted.mT @ gated)
    shift = scatter.root @ weighted  # (M, R, K)
    means = torch.cholesky_solve(shift.mT, lower).mT
    covariance = torch.cholesky_inverse(lower) * (gate.unsqueeze(2) & gate.unsqueeze(1))
    log_det = state.noise.log().sum(-1) + 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    distance = (scatter.variance / state.noise).sum(-1) - (shift * means).sum((-2, -1))
    per_study = log_det + distance + len(state.loadings) * math.log(2 * math.pi)
    value = -0.5 * (scatter.size @ per_study / scatter.size.sum()).item()
    return value, _Moments(scatter.root.mT @ means, covariance + means.mT @ means)


def _maximisation(state: _State, moments: _Moments, scatter: MultiStudyScatter) -> _State:
    """Loadings given the noise, then the noise given the loadings."""
    weight = scatter.size.unsqueeze(1) / state.noise  # (M, G)
    square = (weight.mT @ moments.square.flatten(1)).unflatten(1, moments.square.shape[1:])
    cross = (weight.unsqueeze(-1) * moments.cross).sum(0)  # (G, K)
    lower = torch.linalg.cholesky(square)
    loadings = torch.cholesky_solve(cross.unsqueeze(-1), lower).squeeze(-1)
    explained = 2 * (loadings * moments.cross).sum(-1)
    fitted = ((loadings @ moments.square) * loadings).sum(-1)
    noise = scatter.variance - explained + fitted
    return _State(loadings, torch.maximum(noise, scatter.floor))
