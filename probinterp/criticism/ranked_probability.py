r"""Continuous ranked probability score of single numbers: closed forms and the fair estimate.

.. math:: \mathrm{CRPS}(F, x) = \int (F(t) - 1[t \ge x])^2 dt = E|X - x| - \tfrac12 E|X - X'|

in the units of x, >= 0, small is good. All functions are elementwise and broadcast.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, NegativeBinomial, Normal, Poisson

Floats = NDArray[np.float64]
LARGEST_SIZE = 1e4  # of a negative binomial whose score is taken from the hypergeometric function


class FairEstimate(NamedTuple):
    """Estimate of a score from S draws, and what each draw adds to it."""

    value: Tensor  # (...)
    influence: Tensor  # (S, ...), its variance over draws / S is the Monte-Carlo variance


def crps_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    r"""Score of a normal distribution.

    .. math:: \sigma \Big(w (2 \Phi(w) - 1) + 2 \varphi(w) - \frac1{\sqrt\pi}\Big), \qquad
        w = \frac{x - \mu}{\sigma}

    References
    ----------
    Calibrated probabilistic forecasting using ensemble model output statistics (Gneiting et al.,
    2005), equation 5.
    """
    w = (x - mean) / scale
    density = (-w.square() / 2).exp() / math.sqrt(2 * math.pi)
    return scale * (w * torch.erf(w / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def crps_poisson(x: Tensor, rate: Tensor) -> Tensor:
    r"""Score of a Poisson distribution at whole numbers x.

    .. math:: (x - \lambda)(2 F(x) - 1) + 2 \lambda f(x)
        - \lambda e^{-2\lambda} (I_0(2\lambda) + I_1(2\lambda))

    References
    ----------
    Calibration tests for count data (Wei and Held, 2014).
    """
    rate, x = torch.broadcast_tensors(rate, x)
    below = torch.special.gammaincc(x + 1, rate)
    density = Poisson(rate, validate_args=False).log_prob(x).exp()
    # the scaled Bessel functions contain exp(-2 rate), which alone underflows
    bessel = torch.special.i0e(2 * rate) + torch.special.i1e(2 * rate)
    return (x - rate) * (2 * below - 1) + rate * (2 * density - bessel)


def crps_negative_binomial(x: Tensor, mean: Tensor, size: Tensor) -> Tensor:
    r"""Score of a negative binomial distribution at whole numbers x, computed on the CPU.

    .. math:: x (2 F_{r,p}(x) - 1) - \mu (2 F_{r+1,p}(x - 1) - 1)
        - \frac{\mu}{p}\, {}_2F_1\Big(r + 1, \tfrac12; 2; -\frac{4 (1 - p)}{p^2}\Big), \qquad
        p = \frac{r}{r + \mu}

    with r the size (inverse dispersion): variance :math:`\mu + \mu^2 / r`.

    References
    ----------
    Calibration tests for count data (Wei and Held, 2014).
    """
    from scipy.special import betainc  # slow to import, seldom needed

    y, mu, r = np.broadcast_arrays(*(v.double().cpu().numpy() for v in (x, mean, size)))
    p = r / (r + mu)
    below = betainc(r, y + 1, p)
    # F(-1) = 0; the incomplete beta function has no value there
    further = np.where(y > 0, betainc(r + 1, y.clip(1), p), 0.0)
    result = y * (2 * below - 1) - mu * (2 * further - 1) - _half_difference(mu, r)
    return torch.as_tensor(result).to(x)


def _half_difference(mu: Floats, r: Floats) -> Floats:
    r"""Half the mean absolute difference of two negative binomial counts.

    By Pfaff's transformation the hypergeometric function is
    :math:`p (2 - p)^{-1} {}_2F_1(1 - r, \tfrac12; 2; 4 (1 - p) / (2 - p)^2)`, whose argument lies
    in [0, 1). SciPy loses it above r = 1e4; there the value, divided by the growth of the standard
    deviation, is interpolated in 1 / r between r = 1e4 and the Poisson limit.
    """
    from scipy.special import hyp2f1, i0e, i1e  # slow to import, seldom needed

    inner = np.minimum(r, LARGEST_SIZE)
    p = inner / (inner + mu)
    value = mu / (2 - p) * hyp2f1(1 - inner, 0.5, 2.0, 4 * (1 - p) / (2 - p) ** 2)
    weight = inner / r
    growth = np.sqrt(1 + mu / r)
    poisson = mu * (i0e(2 * mu) + i1e(2 * mu)) * growth
    return weight * value * growth / np.sqrt(1 + mu / inner) + (1 - weight) * poisson


def crps_of(law: Distribution, x: Tensor) -> Tensor | None:
    """Score in closed form where it is known, else None.

    Parameters
    ----------
    law
        Univariate distributions; known are normal, Poisson and negative binomial.
    x
        Data of the batch shape of ``law``.
    """
    if isinstance(law, Normal):
        return crps_normal(x, law.loc, law.scale)
    if isinstance(law, Poisson):
        return crps_poisson(x, law.rate)
    if isinstance(law, NegativeBinomial):
        size: Any = law.total_count
        return crps_negative_binomial(x, law.mean, torch.as_tensor(size))
    return None


def fair_crps(samples: Tensor, x: Tensor) -> FairEstimate:
    r"""Unbiased estimate from S independent draws of the distribution, in O(S log S).

    .. math:: \frac1S \sum_s |X_s - x| - \frac{1}{2 S (S - 1)} \sum_{s, t} |X_s - X_t|

    Parameters
    ----------
    samples
        Draws, shape (S, ...), S at least 2.
    x
        Data, shape (...).

    Returns
    -------
    FairEstimate
        It may be negative by chance.

    References
    ----------
    Fair scores for ensemble forecasts (Ferro, 2014).
    """
    n = len(samples)
    ordered, order = (samples - x).sort(0)  # around x, so that sums of large numbers do not cancel
    rank = torch.arange(1, n + 1, dtype=x.dtype, device=x.device).reshape(-1, *[1] * x.ndim)
    before = ordered.cumsum(0)
    # sum over t of |X_s - X_t|: the smaller ones, then the larger ones
    apart = (2 * rank - n) * ordered - 2 * before + before[-1]
    influence = ordered.abs() - apart / (n - 1)
    value = ordered.abs().mean(0) - apart.mean(0) / (2 * (n - 1))
    return FairEstimate(value, torch.empty_like(influence).scatter_(0, order, influence))
