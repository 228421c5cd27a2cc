"""How many independent draws a Markov chain is worth."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_VALUES = 2**22  # numbers transformed at once


def effective_size(chains: Tensor) -> Tensor:
    r"""Effective sample size of the mean of each entry.

    .. math:: \frac{CL}{-1 + 2 \sum_t P_t}, \quad P_t = \rho_{2t} + \rho_{2t+1}, \quad
        \rho_k = 1 - \frac{W - \bar\gamma_k}{V}

    with :math:`\bar\gamma_k` the autocovariance at lag k, W the variance within chains and V
    that of all draws; the sum stops before the first negative :math:`P_t`, which are made
    monotone.

    Parameters
    ----------
    chains
        Draws, shape (C, L, M): C chains of L draws of M numbers.

    Returns
    -------
    Tensor
        Shape (M,), float64; NaN for a number that does not vary, or with fewer than 4 draws
        per chain.

    References
    ----------
    Introduction to Markov Chain Monte Carlo (Geyer, 2011), section 1.10.2; Rank-normalization,
    folding, and localization (Vehtari et al., 2021), section 3.2, without splitting and ranks.
    """
    n_chains, length, n_numbers = chains.shape
    if length < 4:
        return torch.full((n_numbers,), torch.nan, dtype=torch.float64, device=chains.device)
    width = max(1, BLOCK_VALUES // (2 * n_chains * length))
    return torch.cat([_block(part.double()) for part in chains.split(width, dim=2)])


def _block(chains: Tensor) -> Tensor:
    n_chains, length, _ = chains.shape
    means = chains.mean(1)
    spectrum = torch.fft.rfft(chains - means.unsqueeze(1), 2 * length, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), 2 * length, dim=1)[:, :length].mean(0)
    covariance = covariance / length
    within = covariance[0] * length / (length - 1)
    total = covariance[0] + (means.var(0) if n_chains > 1 else 0.0)
    correlation = 1 - (within - covariance[: length - length % 2]) / total
    correlation[0] = 1.0
    pairs = correlation.reshape(-1, 2, correlation.shape[1]).sum(1)
    later = pairs[1:].clamp(min=0).cummin(0).values
    return n_chains * length / (-1 + 2 * (pairs[0] + later.sum(0)))
