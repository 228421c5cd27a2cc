"""Bayesian probabilistic principal components: every parameter unknown, by Gibbs sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from probinterp.models.exact.draws import (
    ExactDraws,
    LawDraw,
    generator,
    require_data,
    require_equal_counts,
    require_positive_number,
)
from probinterp.models.exact.pca_chain import PCAChain, PCAPrior, State, augmented


class BayesianPCA:
    r"""Probabilistic principal components with unknown mean, loadings and noise.

    .. math:: z_i \sim N(0, I_K), \quad x_i \mid z_i \sim N(\mu + W z_i, \sigma^2 I), \quad
        \mu_j, W_{jk} \sim N(0, s^2), \quad \sigma^2 \sim IG(a, b)

    All full conditionals are conjugate, so that a Gibbs sampler leaves the exact posterior
    invariant: factors, mean and loadings, noise, and a move that rescales a factor against its
    loadings, which the data cannot tell apart. Loadings are identified only up to rotation;
    what the draws offer (the distribution of new rows, the mean of a cell) is invariant.

    Parameters
    ----------
    x
        Observed data, shape (..., N, G). Leading dimensions are independent data sets, whose
        chains run side by side.
    n_factors
        Number of factors, K < G.
    mask
        True for cells that are held out, shape (..., N, G): nothing of them enters the fit.
    prior_scale
        Standard deviation s of means and loadings.
    noise_shape, noise_rate
        Of the inverse gamma prior of the noise variance, a and b.

    Raises
    ------
    ValueError
        If shapes do not fit or a number is not positive.

    Notes
    -----
    The draws are a Markov chain: exact in its limit, autocorrelated before. ``burn_in`` and
    ``thin`` say what is thrown away.

    References
    ----------
    Probabilistic principal component analysis (Tipping and Bishop, 1999); Bayesian PCA (Bishop,
    1999); Parameter expansion for data augmentation (Liu and Wu, 1999), for the rescaling.

    Examples
    --------
    >>> import torch
    >>> draws = BayesianPCA(torch.randn(30, 4), n_factors=1).new_rows(10, n_draws=50)
    >>> next(iter(draws)).replicate().shape, draws.local
    (torch.Size([10, 4]), 'prior')
    """

    def __init__(
        self,
        x: Tensor,
        n_factors: int,
        *,
        mask: Tensor | None = None,
        prior_scale: float = 1.0,
        noise_shape: float = 1.0,
        noise_rate: float = 1.0,
    ) -> None:
        require_data(x, "x")
        for name, value in (("prior_scale", prior_scale), ("noise_shape", noise_shape)):
            require_positive_number(value, name)
        require_positive_number(noise_rate, "noise_rate")
        if not 1 <= n_factors < x.shape[-1]:
            raise ValueError(
                f"n_factors must lie between 1 and G - 1 = {x.shape[-1] - 1}, got {n_factors}."
            )
        if mask is not None and (mask.shape != x.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be boolean of shape {tuple(x.shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        self.n_obs, self.mask = x.shape[-2], mask
        seen = None if mask is None else (~mask).to(x.dtype)
        used = x if mask is None else x.masked_fill(mask, 0.0)
        prior = PCAPrior(prior_scale, noise_shape, noise_rate)
        self.chain, self._device = PCAChain(used, seen, n_factors, prior), x.device

    def new_rows(
        self,
        n_rows: int,
        n_draws: int,
        *,
        burn_in: int = 200,
        thin: int = 5,
        n_reference: int = 32,
        seed: int = 0,
    ) -> ExactDraws:
        """Draws that replicate new units; the factors are integrated out.

        Parameters
        ----------
        n_rows
            Number of units of a replicate, N.
        n_draws
            Number of draws, S.
        burn_in, thin
            Sweeps before the first draw, and sweeps per draw.
        n_reference
            States of a separate chain: reference draws, and averaged for the reference.
        seed
            Same seed, same chain.

        Returns
        -------
        ExactDraws
            Its reference has the posterior mean of the mean and of the covariance of a row;
            ``local`` is ``"prior"``.
        """

        def at(state: State) -> LawDraw:
            mean, loadings = state.coefficients[..., 0], state.coefficients[..., 1:]
            noise = state.noise_variance.unsqueeze(-1).expand_as(mean)
            return repeated(
                LowRankMultivariateNormal(
                    mean.unsqueeze(-2),
                    loadings.unsqueeze(-3),
                    noise.unsqueeze(-2),
                    validate_args=False,
                )
            )

        def repeated(law: LowRankMultivariateNormal | MultivariateNormal) -> LawDraw:
            return LawDraw(law.expand(torch.Size([*law.batch_shape[:-1], n_rows])))

        def average(draws: tuple[LawDraw, ...]) -> LawDraw:
            laws = [draw.law for draw in draws]
            mean = torch.stack([law.mean[..., :1, :] for law in laws]).mean(0)
            covariance = torch.stack([_covariance(law)[..., :1, :, :] for law in laws]).mean(0)
            return repeated(MultivariateNormal(mean, covariance, validate_args=False))

        return self._draws(at, average, n_draws, burn_in, thin, n_reference, seed, "prior")

    def masked_cells(
        self,
        n_draws: int,
        *,
        burn_in: int = 200,
        thin: int = 5,
        n_reference: int = 32,
        seed: int = 0,
    ) -> ExactDraws:
        """Draws that replicate the masked cells, given all other cells.

        Parameters
        ----------
        n_draws
            Number of draws, S.
        burn_in, thin, n_reference, seed
            As for :meth:`new_rows`.

        Returns
        -------
        ExactDraws
            A replicate has shape (..., M, 1), a cell per row, in the order of ``x[mask]``; its
            reference has the posterior mean of each cell's mean and of the noise variance.
            ``local`` is ``"observed"``.

        Raises
        ------
        ValueError
            If no cell is masked, or data sets differ in their number of masked cells.
        """
        if self.mask is None:
            raise ValueError("masked_cells needs a mask; pass mask= to BayesianPCA.")
        mask = self.mask
        require_equal_counts(mask)

        def at(state: State) -> LawDraw:
            means = augmented(state.factors) @ state.coefficients.mT
            scale = state.noise_variance.sqrt()[..., None, None]
            return cells(means[mask].view(*mask.shape[:-2], -1, 1), scale)

        def cells(mean: Tensor, scale: Tensor) -> LawDraw:
            return LawDraw(Independent(Normal(mean, scale, validate_args=False), 1))

        def average(draws: tuple[LawDraw, ...]) -> LawDraw:
            mean = torch.stack([draw.law.mean for draw in draws]).mean(0)
            return cells(mean, torch.stack([draw.law.variance for draw in draws]).mean(0).sqrt())

        return self._draws(at, average, n_draws, burn_in, thin, n_reference, seed, "observed")

    def _draws(
        self,
        at: Callable[[State], LawDraw],
        average: Callable[[tuple[LawDraw, ...]], LawDraw],
        n_draws: int,
        burn_in: int,
        thin: int,
        n_reference: int,
        seed: int,
        local: Literal["prior", "observed"],
    ) -> ExactDraws:
        apart = self.chain.states(generator(seed, self._device, 1), burn_in=burn_in, thin=thin)
        kept = tuple(at(state) for state, _ in zip(apart, range(n_reference), strict=False))

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            return map(at, self.chain.states(source, burn_in=burn_in, thin=thin))

        return ExactDraws(
            sample,
            n_draws,
            seed,
            reference=average(kept),
            predictive=lambda: kept,
            n_obs=self.n_obs,
            local=local,
        )


def _covariance(law: Distribution) -> Tensor:
    assert isinstance(law, LowRankMultivariateNormal)
    return law.covariance_matrix
