"""Two-level Gaussian model: items within groups, with its exact posterior."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    Normal,
)

from probinterp.models.exact.draws import (
    ExactDraws,
    LawDraw,
    normal_like,
    require_data,
    require_positive_number,
)

N_NODES = 2000  # of the grid on which the scale of the groups is integrated
N_PREDICTIVE = 16  # equally probable values of that scale in the predictive density


class TwoLevelGaussian:
    r"""Groups of equally many items whose means vary normally; a unit is a group.

    .. math:: x_{ij} \sim N(\theta_i, \sigma^2), \quad \theta_i \sim N(\mu_0, \tau_0^2), \quad
        p(\mu_0, \tau_0) \propto p(\tau_0)

    With :math:`v = \tau_0^2 + \sigma^2 / J`, :math:`w = \tau_0^2 / v` and the group means
    :math:`\bar x_i` of N groups, everything but :math:`\tau_0` has a closed form:

    .. math:: p(\tau_0 \mid x) \propto p(\tau_0)\, v^{-(N-1)/2}
            \exp\Big(-\frac{1}{2v} \sum_i (\bar x_i - \bar x)^2\Big), \quad
        \mu_0 \mid \tau_0, x \sim N(\bar x, v / N), \quad
        \theta_i \mid \mu_0, \tau_0, x \sim N(\mu_0 + w (\bar x_i - \mu_0), w \sigma^2 / J)

    and :math:`\tau_0` is drawn by inverting its distribution function on a grid of 2,000 nodes
    that covers the half line.

    Parameters
    ----------
    x
        Observed items, shape (..., N, J): a row per group. Leading dimensions are independent
        data sets.
    noise_scale
        Standard deviation of the items within a group, sigma > 0, known.
    scale_prior
        Prior of tau_0; None for the uniform one, which is proper a posteriori from three groups.

    Raises
    ------
    ValueError
        If ``x`` is not finite, ``noise_scale`` not positive, or the posterior is improper.

    Notes
    -----
    The prior :math:`1 / \tau_0` that is sometimes given for this model has no posterior: the
    likelihood is positive at :math:`\tau_0 = 0`, where the prior is not integrable.

    References
    ----------
    Bayesian Data Analysis (Gelman et al., 3rd edition, 2013), section 5.4, equations 5.17 to
    5.21; Prior distributions for variance parameters in hierarchical models (Gelman, 2006).

    Examples
    --------
    >>> import torch
    >>> model = TwoLevelGaussian(torch.randn(20, 1) + 2 * torch.randn(20, 8), noise_scale=2.0)
    >>> draws = model.new_groups(10, 8, n_draws=100)
    >>> next(iter(draws)).replicate().shape, draws.local
    (torch.Size([10, 8]), 'prior')
    """

    def __init__(
        self, x: Tensor, *, noise_scale: float, scale_prior: Distribution | None = None
    ) -> None:
        require_data(x, "x")
        require_positive_number(noise_scale, "noise_scale")
        self.n_obs, n_items = x.shape[-2:]
        fewest = 3 if scale_prior is None else 2
        if self.n_obs < fewest:
            raise ValueError(f"x must have at least {fewest} groups, got {self.n_obs}.")
        self.noise_scale, self.mean_variance = noise_scale, noise_scale**2 / n_items
        self.group_means = x.mean(-1)  # (..., N)
        self.grand_mean = self.group_means.mean(-1)  # (...)
        squares = (self.group_means - self.grand_mean.unsqueeze(-1)).square().sum(-1)
        self._unit, self._cumulative = self._grid(squares, scale_prior)

    def _grid(self, squares: Tensor, prior: Distribution | None) -> tuple[Tensor, Tensor]:
        """Unit of tau_0, (..., 1), and its distribution function, (..., Q + 1).

        Edge q of the cells is tau_0 / (unit + tau_0) = q / Q, so that they cover the half line.
        """
        edge = torch.linspace(0, 1, N_NODES + 1, dtype=squares.dtype, device=squares.device)
        middle = 0.5 * (edge[1:] + edge[:-1])
        unit = (self.mean_variance + squares / self.n_obs).sqrt().unsqueeze(-1)
        tau = unit * middle / (1 - middle)
        v = tau.square() + self.mean_variance
        density = -0.5 * (self.n_obs - 1) * v.log() - squares.unsqueeze(-1) / (2 * v)
        density = density - 2 * (1 - middle).log()  # d tau / d middle, up to a constant
        if prior is not None:
            density = density + prior.log_prob(tau)
        cumulative = density.softmax(-1).cumsum(-1)
        start = torch.zeros_like(cumulative[..., :1])
        return unit, torch.cat([start, cumulative / cumulative[..., -1:]], -1)

    def scale_quantiles(self, probability: Tensor) -> Tensor:
        """Quantiles of the posterior of tau_0.

        Parameters
        ----------
        probability
            Probabilities in [0, 1), shape (..., R) with the leading dimensions of the data.

        Returns
        -------
        Tensor
            Same shape.
        """
        cell = torch.searchsorted(self._cumulative, probability.contiguous(), right=True) - 1
        cell = cell.clamp(0, N_NODES - 1)
        below = self._cumulative.gather(-1, cell)
        width = self._cumulative.gather(-1, cell + 1) - below
        share = torch.where(width > 0, (probability - below) / width, 0.5)
        edge = (cell + share.clamp(0, 1)) / N_NODES
        return self._unit * edge / (1 - edge.clamp(max=1 - 0.5 / N_NODES))

    def new_groups(self, n_groups: int, n_items: int, n_draws: int, *, seed: int = 0) -> ExactDraws:
        r"""Draws that replicate new groups: their means are redrawn from the hierarchy.

        Parameters
        ----------
        n_groups, n_items
            Shape (N, J) of a replicate.
        n_draws
            Number of draws, S.
        seed
            Same seed, same :math:`\mu_0` and :math:`\tau_0`.

        Returns
        -------
        ExactDraws
            Its likelihood has the group means integrated out: the items of a group are
            correlated. ``local`` is ``"prior"``.
        """

        def law(mean: Tensor, variance: Tensor) -> LawDraw:
            return self._exchangeable(mean.unsqueeze(-1), variance.unsqueeze(-1), n_groups, n_items)

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            for mean, variance in self._hyperparameters(source):
                yield law(mean, variance)

        def predictive() -> tuple[LawDraw, ...]:
            variances = self._predictive_scales().square()
            extra = (variances + self.mean_variance) / self.n_obs  # error of mu_0
            return tuple(law(self.grand_mean, v) for v in (variances + extra).unbind(-1))

        mean_scale = self._predictive_scales().mean(-1)
        return ExactDraws(
            sample,
            n_draws,
            seed,
            reference=law(self.grand_mean, mean_scale.square()),
            predictive=predictive,
            n_obs=self.n_obs,
            local="prior",
        )

    def new_items(self, n_items: int, n_draws: int, *, seed: int = 0) -> ExactDraws:
        """Draws that replicate new items of the same groups, given their observed items.

        Parameters
        ----------
        n_items
            New items per group, J; a replicate has shape (N, J) with the groups of the fit.
        n_draws
            Number of draws, S.
        seed
            Same seed, same group means.

        Returns
        -------
        ExactDraws
            Its draws score the items at the drawn group means, its reference at their posterior
            means. ``local`` is ``"observed"``.
        """

        def at(means: Tensor) -> LawDraw:
            loc = means.unsqueeze(-1).expand(*means.shape, n_items)
            law = Normal(loc, self.noise_scale, validate_args=False)
            return LawDraw(Independent(law, 1, validate_args=False))

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            for mean, variance in self._hyperparameters(source):
                loc, spread = self._group_posterior(mean, variance)
                yield at(loc + spread.sqrt() * normal_like(loc, source))

        def predictive() -> tuple[LawDraw, ...]:
            laws = [self._group_posterior(self.grand_mean, v, marginal=True) for v in nodes]
            return tuple(self._exchangeable(*law, self.n_obs, n_items) for law in laws)

        nodes = self._predictive_scales().square().unbind(-1)
        means = [self._group_posterior(self.grand_mean, v)[0] for v in nodes]
        return ExactDraws(
            sample,
            n_draws,
            seed,
            reference=at(torch.stack(means).mean(0)),
            predictive=predictive,
            n_obs=self.n_obs,
            local="observed",
        )

    def _hyperparameters(self, source: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless draws of the mean and variance of the groups, shape (...) each."""
        while True:
            uniform = torch.rand(
                self.grand_mean.shape,
                generator=source,
                dtype=self.grand_mean.dtype,
                device=self.grand_mean.device,
            )
            variance = self.scale_quantiles(uniform.unsqueeze(-1)).squeeze(-1).square()
            error = ((variance + self.mean_variance) / self.n_obs).sqrt()
            yield self.grand_mean + error * normal_like(error, source), variance

    def _group_posterior(
        self, mean: Tensor, variance: Tensor, *, marginal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean (..., N) and variance (..., 1) of the group means; over mu_0 or at ``mean``."""
        total = variance + self.mean_variance
        weight = (variance / total).unsqueeze(-1)
        loc = mean.unsqueeze(-1) + weight * (self.group_means - mean.unsqueeze(-1))
        spread = weight * self.mean_variance
        if marginal:
            spread = spread + (1 - weight).square() * (total / self.n_obs).unsqueeze(-1)
        return loc, spread

    def _predictive_scales(self) -> Tensor:
        """Equally probable values of tau_0, shape (..., R)."""
        middle = (torch.arange(N_PREDICTIVE).to(self.grand_mean) + 0.5) / N_PREDICTIVE
        return self.scale_quantiles(middle.expand(*self.grand_mean.shape, N_PREDICTIVE))

    def _exchangeable(self, mean: Tensor, variance: Tensor, n_groups: int, n_items: int) -> LawDraw:
        """Groups (..., N) of items that share a normal effect with this mean and variance.

        Mean and variance have shape (..., N) or (..., 1): what all groups share is decomposed
        once.
        """
        law = LowRankMultivariateNormal(
            mean.unsqueeze(-1).expand(*mean.shape, n_items),
            variance.sqrt()[..., None, None].expand(*variance.shape, n_items, 1),
            torch.full_like(variance, self.noise_scale**2)
            .unsqueeze(-1)
            .expand(*variance.shape, n_items),
            validate_args=False,
        )
        return LawDraw(law.expand(torch.Size([*mean.shape[:-1], n_groups])))
