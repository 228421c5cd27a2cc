"""Exact moments of means whose logarithms are sums of functions of one factor each."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from probinterp.simulate.links import SLOPE, linked

NODES = 200  # on each side of zero, where the third link has a kink


def log_mean_moments(level: Tensor, loadings: Tensor) -> tuple[Tensor, Tensor]:
    r"""First and second moments of :math:`\mu_j = e^{\eta_j}`, (G,) and (G, G), double precision.

    .. math::
        E[\mu_j] = e^{\ell_j} \prod_k E\big[e^{a_{jk}(z)}\big], \quad
        E[\mu_j \mu_h] = e^{\ell_j + \ell_h} \prod_k E\big[e^{a_{jk}(z) + a_{hk}(z)}\big], \quad
        a_{jk}(z) = w_{jk} f_{jk}(z)

    with z standard normal, because the factors are independent. The integrals over z are
    Gauss-Legendre sums. Averages over draws would not do: strong effects give the means the tails
    of log-normal variables, whose second moments hang on few draws.

    Parameters
    ----------
    level
        Levels of the features, (G,).
    loadings
        Amplitudes by link, (3, G, K); zero where another link or none applies.
    """
    level, loadings = level.double(), loadings.double()
    # the integrands peak below twice the largest slope
    z, weight = _normal_nodes(10 + 2 * SLOPE * float(loadings.abs().max()))
    links = linked(z)
    first, second = level, level.unsqueeze(1) + level
    for column in loadings.unbind(-1):
        effects = (links.mT @ column).exp()  # (nodes, G): rows of the other links are zero
        first = first + (weight @ effects).log()
        second = second + (effects.mT @ (weight.unsqueeze(1) * effects)).log()
    return first.exp(), second.exp()


def _normal_nodes(limit: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal law between ``-limit`` and ``limit``."""
    node, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(NODES))
    half = limit / 2
    z = torch.cat([half * (node - 1), half * (node + 1)])
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return z, half * weight.repeat(2) * density
