"""Linear regression with its conjugate posterior."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, StudentT

from probinterp.models.exact.draws import (
    ExactDraws,
    LawDraw,
    gamma_like,
    normal_like,
    require_data,
    require_positive_number,
)


class NormalInverseGamma(NamedTuple):
    r"""Conjugate prior of the coefficients and the noise of a linear regression.

    .. math:: \sigma^2 \sim IG(a, b), \quad \beta \mid \sigma^2 \sim N(0, \sigma^2 I / \lambda)

    Parameters
    ----------
    precision
        Precision of each coefficient in units of the noise, lambda > 0.
    shape, rate
        Of the inverse gamma prior of the noise variance, positive; not used where it is known.
    """

    precision: float
    shape: float = 1.0
    rate: float = 1.0


class LinearRegression:
    r"""Linear regression of each feature on given covariates, with its exact posterior.

    .. math:: x_{ij} \mid \beta_j, \sigma_j \sim N(h_i^\top \beta_j, \sigma_j^2), \quad
        \sigma_j^2 \mid x \sim IG(a_N, b_j), \quad
        \beta_j \mid \sigma_j, x \sim N(m_j, \sigma_j^2 \Lambda^{-1}), \quad
        \Lambda = H^\top H + \lambda I

    with the flat prior :math:`p(\beta, \log \sigma) \propto 1` unless one is given.

    Parameters
    ----------
    design
        Covariates of the observed units, H, shape (..., N, P).
    x
        Observed data, shape (..., N, G). Leading dimensions are independent data sets.
    noise_scale
        Standard deviation of the noise where it is known; None to infer it per feature.
    prior
        Conjugate prior; None for the flat one.

    Raises
    ------
    ValueError
        If shapes do not fit, numbers are not positive, or a flat prior leaves the posterior
        improper.

    Notes
    -----
    Under the flat prior the distribution of the held-out residuals given the fit is the same a
    posteriori and over repeated data sets, so that plug-in and predictive checks are exactly
    calibrated at any true coefficients; under a proper prior they are when the truth is drawn
    from it.

    References
    ----------
    Bayesian Data Analysis (Gelman et al., 3rd edition, 2013), sections 14.2 and 14.8.

    Examples
    --------
    >>> import torch
    >>> design = torch.ones(50, 1)
    >>> model = LinearRegression(design, torch.randn(50, 1), noise_scale=1.0)
    >>> draws = model.draws(torch.ones(20, 1), n_draws=100)
    >>> next(iter(draws)).replicate().shape
    torch.Size([20, 1])
    """

    def __init__(
        self,
        design: Tensor,
        x: Tensor,
        *,
        noise_scale: float | None = None,
        prior: NormalInverseGamma | None = None,
    ) -> None:
        require_data(design, "design")
        require_data(x, "x")
        if design.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                "design and x must have the same units, "
                f"got shapes {tuple(design.shape)} and {tuple(x.shape)}."
            )
        _require_proper(prior, noise_scale, *design.shape[-2:])
        self.noise_scale = noise_scale
        self.n_obs, self.n_covariates = design.shape[-2:]
        precision = 0.0 if prior is None else prior.precision
        identity = torch.eye(self.n_covariates, dtype=design.dtype, device=design.device)
        root = torch.linalg.cholesky(design.mT @ design + precision * identity)
        self.coefficients = torch.cholesky_solve(design.mT @ x, root)  # posterior mean, (..., P, G)
        # Lambda^-1 = root^-T root^-1
        self.covariance_root = torch.linalg.solve_triangular(root.mT, identity, upper=True)
        residual = (x - design @ self.coefficients).square().sum(-2)
        penalty = precision * self.coefficients.square().sum(-2)
        self.shape = self._posterior_shape(prior)
        self.rate = 0.5 * (residual + penalty) + (0.0 if prior is None else prior.rate)  # (..., G)

    def _posterior_shape(self, prior: NormalInverseGamma | None) -> float:
        if prior is None:
            return 0.5 * (self.n_obs - self.n_covariates)
        return prior.shape + 0.5 * self.n_obs

    def draws(self, design: Tensor, n_draws: int, *, seed: int = 0) -> ExactDraws:
        """Draws that replicate new units with the given covariates.

        Parameters
        ----------
        design
            Covariates of the new units, shape (..., N, P).
        n_draws
            Number of draws, S.
        seed
            Same seed, same coefficients.

        Returns
        -------
        ExactDraws
            Its reference lies at the posterior means of the coefficients and of the noise
            precision; its predictive density is exact.

        Raises
        ------
        ValueError
            If ``design`` has other covariates than the observed units.
        """
        require_data(design, "design")
        if design.shape[-1] != self.n_covariates:
            raise ValueError(
                f"design must have {self.n_covariates} columns, got shape {tuple(design.shape)}."
            )

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            while True:
                scale = self._scale(gamma_like(torch.full_like(self.rate, self.shape), source))
                noise = self.covariance_root @ normal_like(self.coefficients, source)
                yield _at(design, self.coefficients + noise * scale.unsqueeze(-2), scale)

        scale = self._scale(torch.full_like(self.rate, self.shape))
        return ExactDraws(
            sample,
            n_draws,
            seed,
            reference=_at(design, self.coefficients, scale),
            predictive=lambda: (LawDraw(Independent(self._predictive(design), 1)),),
            n_obs=self.n_obs,
        )

    def _scale(self, gamma: Tensor) -> Tensor:
        """Noise sd of each feature, (..., G), of a gamma number with rate 1."""
        if self.noise_scale is not None:
            return torch.full_like(self.rate, self.noise_scale)
        return (self.rate / gamma).sqrt()

    def _predictive(self, design: Tensor) -> Distribution:
        leverage = (design @ self.covariance_root).square().sum(-1, keepdim=True)
        mean, widening = design @ self.coefficients, (1 + leverage).sqrt()
        if self.noise_scale is not None:
            return Normal(mean, self.noise_scale * widening, validate_args=False)
        scale = (self.rate / self.shape).sqrt().unsqueeze(-2) * widening
        return StudentT(2 * self.shape, mean, scale, validate_args=False)


def _at(design: Tensor, coefficients: Tensor, scale: Tensor) -> LawDraw:
    law = Normal(design @ coefficients, scale.unsqueeze(-2), validate_args=False)
    return LawDraw(Independent(law, 1, validate_args=False))


def _require_proper(
    prior: NormalInverseGamma | None, noise_scale: float | None, n_obs: int, n_covariates: int
) -> None:
    if noise_scale is not None:
        require_positive_number(noise_scale, "noise_scale")
    if prior is not None:
        for name, value in prior._asdict().items():
            require_positive_number(value, f"prior.{name}")
    elif n_obs < n_covariates + (noise_scale is None):
        raise ValueError(
            f"a flat prior needs more units than covariates, got {n_obs} and {n_covariates}; "
            "pass a NormalInverseGamma prior."
        )
