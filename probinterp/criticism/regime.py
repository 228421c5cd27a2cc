"""How far a realised discrepancy is from the regime in which it is calibrated."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

REGIME_WARNING, REGIME_REFUSAL = 0.2, 1.0


class RegimeNumber:
    r"""Running regime number of a realised check, from the draws themselves.

    .. math:: \hat r = \sqrt{2n}\; \frac1n \sum_{i=1}^n
        \frac{\mathrm{Var}_s\, E[x_i \mid \theta_s, z_s]}{E_s \mathrm{Var}(x_i \mid \theta_s, z_s)}

    over the n held-out scalars. A realised discrepancy charges the held-out data, but not the
    replicate, with the error of the parameters; relative to the spread of the discrepancy that
    shift is about :math:`\hat r`, and :math:`E[p] \approx \Phi(-\hat r / \sqrt 2)` under a correct
    model. Moments are accumulated by Welford's algorithm: three tensors of the size of the data.

    Parameters
    ----------
    n_values
        Number n of held-out scalars. Moments may have fewer, where units share them.
    """

    def __init__(self, n_values: int) -> None:
        self.n_values, self.n_draws = n_values, 0
        self._mean = self._squares = self._variance = torch.zeros(())

    def update(self, likelihood: Distribution) -> None:
        """Add the likelihood of the held-out data under one draw."""
        mean, variance = likelihood.mean, likelihood.variance
        self.n_draws += 1
        if self.n_draws == 1:
            self._mean, self._variance = mean.clone(), variance.clone()
            self._squares = torch.zeros_like(self._mean)
            return
        step = mean - self._mean
        self._mean += step / self.n_draws
        self._squares += step * (mean - self._mean)
        self._variance += (variance - self._variance) / self.n_draws

    def value(self) -> float | None:
        """Regime number, or None with fewer than two draws."""
        if self.n_draws < 2:
            return None
        between: Tensor = self._squares / (self.n_draws - 1)
        ratio = torch.where(between == 0, 0.0, between / self._variance)
        return ratio.mean().item() * math.sqrt(2 * self.n_values)
