"""Probabilistic principal components with known loadings: the exact posterior of the factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, Normal

from probinterp.models.exact.draws import (
    ExactDraws,
    LawDraw,
    normal_like,
    require_data,
    require_equal_counts,
    require_positive_number,
)


class ProbabilisticPCA:
    r"""Linear factor model with known parameters: only the factors of each unit are unknown.

    .. math:: z_i \sim N(0, I_K), \quad x_i \mid z_i \sim N(\mu + W z_i, \sigma^2 I), \quad
        z_i \mid x_{iO} \sim N\Big(\tfrac{1}{\sigma^2} V_i W_O^\top (x_{iO} - \mu_O),\; V_i\Big),
        \quad V_i = \big(I + W_O^\top W_O / \sigma^2\big)^{-1}

    for the observed features O of unit i. The model for which it is known what a check sees by
    where the factors of the replicate come from; for unknown parameters see
    :class:`~probinterp.models.exact.BayesianPCA`.

    Parameters
    ----------
    loadings
        W, shape (G, K).
    noise_scale
        sigma > 0.
    mean
        mu, shape (G,); zero by default.

    Raises
    ------
    ValueError
        If shapes do not fit or ``noise_scale`` is not positive.

    References
    ----------
    Probabilistic principal component analysis (Tipping and Bishop, 1999), section 3.

    Examples
    --------
    >>> import torch
    >>> model = ProbabilisticPCA(torch.ones(4, 1), noise_scale=1.0)
    >>> mask = torch.tensor([[True, False, False, False], [False, False, True, True]])
    >>> draws = model.masked_cells(torch.randn(2, 4), mask, n_draws=100)
    >>> next(iter(draws)).replicate().shape, draws.local
    (torch.Size([3, 1]), 'observed')
    """

    def __init__(self, loadings: Tensor, noise_scale: float, mean: Tensor | None = None) -> None:
        if loadings.ndim != 2:
            raise ValueError(f"loadings must have shape (G, K), got {tuple(loadings.shape)}.")
        require_data(loadings, "loadings")
        require_positive_number(noise_scale, "noise_scale")
        if mean is not None and mean.shape != loadings.shape[:1]:
            raise ValueError(f"mean must have shape ({len(loadings)},), got {tuple(mean.shape)}.")
        self.loadings, self.noise_scale = loadings, noise_scale
        self.mean = torch.zeros_like(loadings[:, 0]) if mean is None else mean

    def factors(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior of the factors given the cells that are not masked.

        Parameters
        ----------
        x
            Data, shape (..., N, G).
        mask
            True for the cells that are left out, shape (..., N, G); None for none.

        Returns
        -------
        tuple of Tensor
            Mean, shape (..., N, K), and a root R of the covariance R R^T, (..., N, K, K).

        Raises
        ------
        ValueError
            If ``x`` or ``mask`` has the wrong shape.
        """
        require_data(x, "x")
        if x.shape[-1] != len(self.loadings) or (mask is not None and mask.shape != x.shape):
            raise ValueError(
                f"x must have {len(self.loadings)} features and mask the shape of x, got "
                f"{tuple(x.shape)} and {None if mask is None else tuple(mask.shape)}."
            )
        seen = torch.ones_like(x) if mask is None else (~mask).to(x.dtype)
        scaled = self.loadings / self.noise_scale
        identity = torch.eye(scaled.shape[1], dtype=x.dtype, device=x.device)
        outer = scaled.unsqueeze(-1) * scaled.unsqueeze(-2)  # (G, K, K)
        precision = identity + (seen @ outer.flatten(1)).unflatten(-1, identity.shape)
        root = torch.linalg.cholesky(precision)
        right = (((x - self.mean) * seen / self.noise_scale) @ scaled).unsqueeze(-1)
        mean = torch.cholesky_solve(right, root).squeeze(-1)
        upper = torch.linalg.solve_triangular(root.mT, identity.expand_as(root), upper=True)
        return mean, upper

    def new_rows(self, n_rows: int | tuple[int, ...], n_draws: int) -> ExactDraws:
        """Draws that replicate new units; the factors are integrated out.

        Parameters
        ----------
        n_rows
            Number of units of a replicate, N, or (..., N) for data sets side by side.
        n_draws
            Number of draws, S; all alike, since nothing is unknown.

        Returns
        -------
        ExactDraws
            ``local`` is ``"prior"``.
        """
        size = (n_rows,) if isinstance(n_rows, int) else n_rows
        draw = LawDraw(self._marginal().expand(torch.Size(size)))
        return self._draws(lambda source: itertools.repeat(draw), n_draws, 0, draw, draw, "prior")

    def masked_cells(self, x: Tensor, mask: Tensor, n_draws: int, *, seed: int = 0) -> ExactDraws:
        """Draws that replicate the masked cells, given the other cells of their rows.

        Parameters
        ----------
        x
            Data, shape (..., N, G); its masked cells are not looked at.
        mask
            True for the masked cells, shape (..., N, G); as many in each data set.
        n_draws
            Number of draws, S.
        seed
            Same seed, same factors.

        Returns
        -------
        ExactDraws
            A replicate has shape (..., M, 1), a cell per row, in the order of ``x[mask]``. The
            reference scores at the posterior mean of the factors, the predictive density has the
            exact predictive variance. ``local`` is ``"observed"``.

        Raises
        ------
        ValueError
            If no cell is masked, data sets differ in their number, or a shape does not fit.
        """
        require_equal_counts(mask)
        loc, root = self.factors(x, mask)

        def cells(values: Tensor) -> Tensor:
            return values[mask].view(*x.shape[:-2], -1, 1)

        def at(z: Tensor, extra: Tensor | float = 0.0) -> LawDraw:
            scale = (self.noise_scale**2 + extra) ** 0.5
            law = Normal(cells(self.mean + z @ self.loadings.mT), scale, validate_args=False)
            return LawDraw(Independent(law, 1, validate_args=False))

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            while True:
                yield at(loc + (root @ normal_like(loc, source).unsqueeze(-1)).squeeze(-1))

        spread = cells((self.loadings @ root).square().sum(-1))
        return self._draws(sample, n_draws, seed, at(loc), at(loc, spread), "observed")

    def same_rows(self, x: Tensor, n_draws: int, *, seed: int = 0) -> ExactDraws:
        """Draws whose factors are inferred from the very rows they are compared with.

        For contrast: it uses the data twice and is blind to a wrong distribution of the factors.

        Parameters
        ----------
        x
            Data that will be compared, shape (..., N, G).
        n_draws
            Number of draws, S.
        seed
            Same seed, same factors.

        Returns
        -------
        ExactDraws
            The reference and the predictive density have the factors integrated out. ``local``
            is ``"posterior"``.
        """
        loc, root = self.factors(x)

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            while True:
                z = loc + (root @ normal_like(loc, source).unsqueeze(-1)).squeeze(-1)
                law = Normal(self.mean + z @ self.loadings.mT, self.noise_scale)
                yield LawDraw(Independent(law, 1))

        marginal = LawDraw(self._marginal().expand(x.shape[:-1]))
        return self._draws(sample, n_draws, seed, marginal, marginal, "posterior")

    def _marginal(self) -> LowRankMultivariateNormal:
        noise = torch.full_like(self.mean, self.noise_scale**2)
        return LowRankMultivariateNormal(self.mean, self.loadings, noise, validate_args=False)

    def _draws(
        self,
        sample: Callable[[torch.Generator], Iterator[LawDraw]],
        n_draws: int,
        seed: int,
        reference: LawDraw,
        predictive: LawDraw,
        local: Literal["prior", "observed", "posterior"],
    ) -> ExactDraws:
        return ExactDraws(
            sample,
            n_draws,
            seed,
            reference=reference,
            predictive=lambda: (predictive,),
            n_obs=None,  # no parameter was fitted
            local=local,
        )
