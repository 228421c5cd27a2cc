"""Data sets from the exact models: each simulation draws a truth, data of the fit and new data.

``truth="prior"``: the parameters are drawn from the prior, so that new data and replicates are
exchangeable given the data of the fit, and the rank p-value of any fixed discrepancy is exactly
uniform. ``truth="fixed"``: the same parameters in all data sets; uniform up to terms that vanish
with the size of the data, or exactly where the prior is flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from study import DataSets, Simulation
from torch import Tensor
from torch.distributions import (
    Categorical,
    Gamma,
    HalfNormal,
    Independent,
    MixtureSameFamily,
    Normal,
)

from probinterp.models.exact import (
    BayesianPCA,
    ExactDraws,
    LawDraw,
    LinearRegression,
    PoissonGamma,
    ProbabilisticPCA,
    TwoLevelGaussian,
)
from probinterp.models.mixtures import GaussianMixture, GaussianMixtureParameters


def normals(seed: int) -> Callable[..., Tensor]:
    """Source of standard normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def seeded_gamma(shape: float, rate: float, size: tuple[int, ...], seed: int) -> Tensor:
    """Gamma numbers, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Gamma(torch.tensor(shape).double(), torch.tensor(rate).double()).sample(size)


def regression(
    n_obs: int, n_new: int, dim: int, *, known_noise: bool = True, in_sample: bool = False
) -> Simulation:
    """Flat prior, noise sd 1; calibrated at any fixed coefficients."""

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        normal = normals(seed)
        coefficients = normal(n_sets, dim, 1)
        design, design_new = normal(n_sets, n_obs, dim), normal(n_sets, n_new, dim)
        x = design @ coefficients + normal(n_sets, n_obs, 1)
        x_new = design_new @ coefficients + normal(n_sets, n_new, 1)
        model = LinearRegression(design, x, noise_scale=1.0 if known_noise else None)
        if in_sample:
            return DataSets(model.draws(design, n_draws, seed=seed), x)
        return DataSets(model.draws(design_new, n_draws, seed=seed), x_new)

    return simulate


def poisson(n_obs: int, n_new: int, *, truth: str) -> Simulation:
    """Prior Gamma(.1, .2), or rate 2 in all data sets."""

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        rate = torch.full((n_sets, 1, 1), 2.0, dtype=torch.float64)
        if truth == "prior":
            rate = seeded_gamma(0.1, 0.2, (n_sets, 1, 1), seed)
        generator = torch.Generator().manual_seed(seed + 1)
        x = torch.poisson(rate.expand(-1, n_obs + n_new, 1), generator=generator)
        draws = PoissonGamma(x[:, :n_obs]).draws(n_new, n_draws, seed=seed)
        return DataSets(draws, x[:, n_obs:])

    return simulate


def two_level(n_groups: int, n_items: int, *, truth: str, new: str) -> Simulation:
    """Items with sd 2; tau_0 from its half-normal prior, or 1 under a uniform prior.

    ``new`` is "groups" (as many new groups) or "items" (as many new items of each group).
    """
    prior = HalfNormal(torch.tensor(1.0, dtype=torch.float64)) if truth == "prior" else None

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        normal = normals(seed)
        tau = normal(n_sets, 1, 1).abs() if truth == "prior" else 1.0
        theta = tau * normal(n_sets, 2 * n_groups, 1)
        x = theta + 2 * normal(n_sets, 2 * n_groups, 2 * n_items)
        observed = x[:, :n_groups, :n_items]
        model = TwoLevelGaussian(observed, noise_scale=2.0, scale_prior=prior)
        if new == "groups":
            draws = model.new_groups(n_groups, n_items, n_draws, seed=seed)
            return DataSets(draws, x[:, n_groups:, :n_items])
        return DataSets(model.new_items(n_items, n_draws, seed=seed), x[:, :n_groups, n_items:])

    return simulate


def masked_pca(n_rows: int, n_features: int, n_factors: int, n_masked: int) -> Simulation:
    """Known loadings and noise; factors from their prior, cells masked at random."""

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        normal = normals(seed)
        loadings = normal(n_features, n_factors)
        x = normal(n_sets, n_rows, n_factors) @ loadings.T + normal(n_sets, n_rows, n_features)
        mask = random_mask(x.shape, n_masked, seed)
        draws = ProbabilisticPCA(loadings, 1.0).masked_cells(x, mask, n_draws, seed=seed)
        return DataSets(draws, x[mask].view(n_sets, n_masked, 1))

    return simulate


def gaussian_mixture(n_obs: int, n_new: int, *, truth: str, n_reference: int = 8) -> Simulation:
    """Two components with unknown weights, means and variances, by Gibbs sampling.

    Truth from the prior (Dirichlet(1), N(0, 5^2), IG(3, 2)), or components at -2 and 2 with sd 1
    and weights .3 and .7 under the default prior. Every tenth sweep after the first 300 is kept.
    """
    model = GaussianMixture(2, mean_scale=5.0, shape=3.0, rate=2.0)
    if truth == "fixed":
        model = GaussianMixture(2)

    @cache  # the chains are what costs; they serve both kinds
    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        normal, generator = normals(seed + 1), torch.Generator().manual_seed(seed)
        weight = torch.full((n_sets, 1, 1), 0.3)
        means, scales = torch.tensor([-2.0, 2.0]).double().expand(n_sets, 2), torch.ones(n_sets, 2)
        if truth == "prior":
            weight = torch.rand(n_sets, 1, 1, generator=generator)
            means = 5 * normal(n_sets, 2)
            scales = seeded_gamma(3.0, 2.0, (n_sets, 2), seed + 2).rsqrt()
        first = torch.rand(n_sets, n_obs + n_new, 1, generator=generator) < weight

        def of_its_component(values: Tensor) -> Tensor:
            return torch.where(first, values[:, :1, None], values[:, 1:, None]).double()

        x = of_its_component(means) + of_its_component(scales) * normal(*first.shape)
        chains = model.gibbs(
            x[:, :n_obs], n_draws=n_reference + n_draws, burn_in=300, thin=10, seed=seed + 3
        )
        laws = [LawDraw(mixture_law(state, n_new)) for state in chains]
        draws = ExactDraws(
            lambda source: iter(laws[n_reference:]),
            n_draws,
            seed,
            reference=laws[0],
            predictive=lambda: tuple(laws[:n_reference]),
            n_obs=n_obs,
            local="prior",
        )
        return DataSets(draws, x[:, n_obs:])

    return simulate


def mixture_weight(n_obs: int, n_new: int, *, n_nodes: int = 400) -> Simulation:
    """Components N(-2, 1) and N(2, 1) known, their weight uniform: drawn from a grid, exactly."""
    components = Normal(torch.tensor([-2.0, 2.0]).double(), 1.0)

    def law(weight: Tensor) -> LawDraw:  # (D,)
        labels = torch.stack([weight, 1 - weight], -1).unsqueeze(1).expand(-1, n_new, 2)
        means = components.mean.expand(labels.shape).unsqueeze(-1)
        rows = Independent(Normal(means, 1.0, validate_args=False), 1)
        return LawDraw(MixtureSameFamily(Categorical(labels), rows, validate_args=False))

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        generator = torch.Generator().manual_seed(seed)
        truth = torch.rand(n_sets, 1, 1, generator=generator, dtype=torch.float64)
        first = torch.rand(n_sets, n_obs + n_new, 1, generator=generator) < truth
        x = torch.where(first, -2.0, 2.0).double() + normals(seed + 1)(*first.shape)
        node = (torch.arange(n_nodes).double() + 0.5) / n_nodes
        density = components.log_prob(x[:, :n_obs]).exp()  # (D, N, 2)
        at_nodes = density[..., :1] * node + density[..., 1:] * (1 - node)
        posterior = at_nodes.log().sum(1).softmax(-1)
        mean = posterior @ node

        def sample(source: torch.Generator) -> Iterator[LawDraw]:
            while True:
                cell = torch.multinomial(posterior, 1, generator=source)
                jitter = torch.rand(cell.shape, generator=source, dtype=torch.float64)
                yield law(((cell + jitter) / n_nodes).squeeze(-1))

        # the predictive density of a row is linear in the weight
        draws = ExactDraws(
            sample,
            n_draws,
            seed,
            reference=law(mean),
            predictive=lambda: (law(mean),),
            n_obs=n_obs,
            local="prior",
        )
        return DataSets(draws, x[:, n_obs:])

    return simulate


def mixture_law(state: GaussianMixtureParameters, n_new: int) -> MixtureSameFamily:
    """Law of new rows of D data sets, each at its own parameters: batch shape (D, N)."""

    def of_rows(values: Tensor) -> Tensor:  # (D, ...) to (D, N, ...)
        return values.unsqueeze(1).expand(-1, n_new, *values.shape[1:])

    normal = Normal(of_rows(state.means), of_rows(state.variances.sqrt()), validate_args=False)
    labels = Categorical(of_rows(state.weights))
    return MixtureSameFamily(labels, Independent(normal, 1), validate_args=False)


def factor_rows(
    n_rows: int, n_features: int, n_factors: int, *, local: str, scale: float = 1.0
) -> Simulation:
    """Rows of a factor model with known loadings whose factors have sd ``scale``; it says 1."""

    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        normal = normals(seed)
        loadings = normal(n_features, n_factors)
        z = scale * normal(n_sets, n_rows, n_factors)
        x = z @ loadings.T + normal(n_sets, n_rows, n_features)
        model = ProbabilisticPCA(loadings, 1.0)
        if local == "posterior":
            return DataSets(model.same_rows(x, n_draws, seed=seed), x)
        return DataSets(model.new_rows((n_sets, n_rows), n_draws), x)

    return simulate


def bayesian_pca(n_rows: int, n_features: int, n_factors: int, *, n_masked: int = 0) -> Simulation:
    """All parameters from their priors; new rows, or masked cells where ``n_masked`` > 0."""

    @cache  # one chain serves both kinds
    def simulate(n_sets: int, n_draws: int, seed: int) -> DataSets:
        normal = normals(seed)
        noise = seeded_gamma(3.0, 2.0, (n_sets, 1, 1), seed).rsqrt()
        mean, loadings = normal(n_sets, 1, n_features), normal(n_sets, n_factors, n_features)
        n_all = n_rows if n_masked else 2 * n_rows
        z = normal(n_sets, n_all, n_factors)
        x = mean + z @ loadings + noise * normal(n_sets, n_all, n_features)
        mask = random_mask(x.shape, n_masked, seed) if n_masked else None
        model = BayesianPCA(x[:, :n_rows], n_factors, mask=mask, noise_shape=3.0, noise_rate=2.0)
        chain = {"burn_in": 60, "thin": 4, "n_reference": 8, "seed": seed}
        if mask is None:
            draws, x_new = model.new_rows(n_rows, n_draws, **chain), x[:, n_rows:]
        else:
            draws = model.masked_cells(n_draws, **chain)
            x_new = x[mask].view(n_sets, n_masked, 1)
        return DataSets(kept(draws), x_new)

    return simulate


def kept(draws: ExactDraws) -> ExactDraws:
    """The same draws, computed once."""
    laws = tuple(draws)
    return ExactDraws(
        lambda source: iter(laws),
        draws.n_draws,
        draws.seed,
        reference=draws.reference,
        predictive=lambda: draws.reference_draws,
        n_obs=draws.n_obs,
        local=draws.local,
    )


def random_mask(shape: torch.Size, n_masked: int, seed: int) -> Tensor:
    """Hide as many cells, chosen at random, in each data set of shape (D, N, G)."""
    generator = torch.Generator().manual_seed(seed + 1)
    n_sets, n_rows, n_features = shape
    order = torch.rand(n_sets, n_rows * n_features, generator=generator).argsort(1)
    return (order.argsort(1) < n_masked).view(shape)
