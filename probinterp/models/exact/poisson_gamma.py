"""Poisson counts with a gamma prior on the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, NegativeBinomial, Poisson

from probinterp.models.exact.draws import (
    ExactDraws,
    LawDraw,
    gamma_like,
    require_data,
    require_positive_number,
)


class PoissonGamma:
    r"""Independent Poisson counts per feature, with the exact posterior of their rates.

    .. math:: x_{ij} \mid \theta_j \sim \mathrm{Pois}(\theta_j), \quad
        \theta_j \sim \mathrm{Gamma}(a, b), \quad
        \theta_j \mid x \sim \mathrm{Gamma}\Big(a + \sum_i x_{ij},\; b + N\Big)

    The posterior predictive distribution of a count is negative binomial.

    Parameters
    ----------
    x
        Observed counts, shape (..., N, G). Leading dimensions are independent data sets.
    shape, rate
        Of the gamma prior, a and b, positive.

    Raises
    ------
    ValueError
        If ``x`` is negative or not finite, or a prior parameter is not positive.

    References
    ----------
    Bayesian Data Analysis (Gelman et al., 3rd edition, 2013), section 2.6.

    Examples
    --------
    >>> import torch
    >>> model = PoissonGamma(torch.tensor([[1.0], [3.0]]), shape=1.0, rate=2.0)
    >>> model.posterior_shape.item(), model.posterior_rate
    (5.0, 4.0)
    """

    def __init__(self, x: Tensor, *, shape: float = 0.1, rate: float = 0.2) -> None:
        require_data(x, "x")
        if x.min() < 0:
            raise ValueError(f"x must be counts, got the negative number {x.min().item():g}.")
        require_positive_number(shape, "shape")
        require_positive_number(rate, "rate")
        self.n_obs = x.shape[-2]
        self.posterior_shape = shape + x.sum(-2)  # (..., G)
        self.posterior_rate = rate + self.n_obs

    def draws(self, n_new: int, n_draws: int, *, seed: int = 0) -> ExactDraws:
        """Draws that replicate ``n_new`` new units.

        Parameters
        ----------
        n_new
            Number of units of a replicate, N.
        n_draws
            Number of draws, S.
        seed
            Same seed, same rates.

        Returns
        -------
        ExactDraws
            Its reference lies at the posterior mean; its predictive density is exact.
        """

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            while True:
                yield at(gamma_like(self.posterior_shape, source) / self.posterior_rate)

        def at(rates: Tensor) -> LawDraw:
            return _rows(Poisson(_repeated(rates, n_new), validate_args=False))

        def predictive() -> tuple[LawDraw, ...]:
            sizes = _repeated(self.posterior_shape, n_new)
            odds = torch.full_like(sizes, -math.log(self.posterior_rate))
            law = NegativeBinomial(sizes, logits=odds, validate_args=False)
            return (_rows(law),)

        reference = at(self.posterior_shape / self.posterior_rate)
        return ExactDraws(
            sample, n_draws, seed, reference=reference, predictive=predictive, n_obs=self.n_obs
        )


def _repeated(values: Tensor, n_new: int) -> Tensor:
    return values.unsqueeze(-2).expand(*values.shape[:-1], n_new, values.shape[-1])


def _rows(law: Distribution) -> LawDraw:
    return LawDraw(Independent(law, 1, validate_args=False))
