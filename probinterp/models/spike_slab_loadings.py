"""Loadings with a spike-and-slab-lasso prior, as a part of models."""

from __future__ import annotations

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from probinterp.distributions import SpikeSlabLasso

MIN_RATE, MAX_RATE = 1e-6, 1 - 1e-6  # an inclusion rate of 0 kills its column for ever
ACTIVE_LOADING = 1e-2


class SpikeSlabLoadings(nn.Module):
    r"""Sparse loadings W (G, K), each column with an inclusion rate of its own.

    .. math:: \eta_k \sim \mathrm{Beta}(1, G), \quad
        w_{jk} \sim \eta_k \mathrm{Laplace}(\lambda_1) + (1-\eta_k)\mathrm{Laplace}(\lambda_0)

    W is a point estimate (MAP); the rates follow in closed form (:meth:`update`). With the rates
    integrated out an empty column costs log 2, so that support gathers in few columns:
    see :func:`probinterp.distributions.column_cost`.

    Parameters
    ----------
    n_features, n_factors
        Shape (G, K).
    spike, slab
        Rates :math:`\lambda_0 > \lambda_1`; None to have them set by :meth:`set_rates`.
    mixture
        Whether the prior is the exact mixture, or the Laplace distribution at the current
        inclusion probabilities, as in the authors' code.

    Raises
    ------
    ValueError
        If a rate is not positive, or the rates are not ordered.

    References
    ----------
    The Spike-and-Slab LASSO (Ročková and George, 2018); Identifiable Deep Generative Models via
    Sparse Decoding (Moran et al., 2022), section 2.
    """

    inclusion_rate: Tensor
    spike: Tensor
    slab: Tensor
    penalty: Tensor
    support: Tensor

    def __init__(
        self,
        n_features: int,
        n_factors: int,
        *,
        spike: float | None = None,
        slab: float | None = None,
        mixture: bool = True,
    ) -> None:
        super().__init__()
        _require_rates(spike, slab)
        self.rates, self.mixture = (spike, slab), mixture
        shape = (n_features, n_factors)
        self.weight = nn.Parameter(torch.randn(shape))
        self.register_buffer("inclusion_rate", torch.rand(n_factors).clamp(MIN_RATE, MAX_RATE))
        self.register_buffer("spike", torch.tensor(float(spike or 1.0)))
        self.register_buffer("slab", torch.tensor(float(slab or 0.06)))
        self.register_buffer("penalty", torch.empty(shape))  # lambda*, at the current inclusion
        self.register_buffer("support", torch.ones(shape, dtype=torch.bool))
        self.pruned = False
        self.register_load_state_dict_post_hook(_restore_pruned)
        self.update(torch.full(shape, 0.5))

    def sample(self) -> Tensor:
        """Draw the sites ``inclusion_rate`` and ``W`` from the prior; return W (G, K)."""
        ones = torch.ones_like(self.inclusion_rate)
        beta = dist.Beta(ones, ones * len(self.weight)).to_event(1)
        rate = pyro.sample("inclusion_rate", beta)
        return pyro.sample("W", self._law(rate).to_event(2))

    def log_prior(self) -> Tensor:
        """Log density of W at the current inclusion rates, a scalar."""
        return self._law(self.inclusion_rate).log_prob(self.masked).sum()

    def guide(self) -> None:
        """Point masses at the sites of :meth:`sample`."""
        pyro.sample("inclusion_rate", dist.Delta(self.inclusion_rate, event_dim=1))
        pyro.sample("W", dist.Delta(self.masked, event_dim=2))

    @property
    def masked(self) -> Tensor:
        """W with zeros outside the support, (G, K)."""
        return self.weight * self.support

    @property
    def known_support(self) -> Tensor | None:
        """The support where it is fixed, else None."""
        return self.support if self.pruned else None

    @property
    def inclusion_probability(self) -> Tensor:
        """Probability that each loading comes from the slab, p* (G, K)."""
        if not self.mixture:  # the authors' code leaves the ratio of the rates out
            gap = (self.spike - self.slab) * self.weight.abs()
            return torch.sigmoid(torch.logit(self.inclusion_rate) + gap)
        prior = SpikeSlabLasso(self.spike, self.slab, self.inclusion_rate, validate_args=False)
        return prior.inclusion_probability(self.weight) * self.support

    @torch.no_grad()
    def set_rates(self, spike: float, slab: float) -> None:
        """Set the rates that the constructor was not given."""
        given = self.rates
        self.spike.fill_(spike if given[0] is None else given[0])
        self.slab.fill_(slab if given[1] is None else given[1])
        self.update(torch.full_like(self.weight, 0.5))

    @torch.no_grad()
    def update(self, inclusion: Tensor | None = None) -> None:
        """Set the inclusion rates to their mode given inclusion probabilities (G, K)."""
        inclusion = self.inclusion_probability if inclusion is None else inclusion
        rate = inclusion.sum(0) / (2 * len(inclusion) - 1)  # mode of Beta(1, G) with soft counts
        self.inclusion_rate.copy_(rate.clamp(MIN_RATE, MAX_RATE))
        self.penalty.copy_(self.slab * inclusion + self.spike * (1 - inclusion))

    def _law(self, rate: Tensor) -> dist.TorchDistribution:
        if not self.mixture:
            return dist.Laplace(0.0, 1 / self.penalty)
        return SpikeSlabLasso(self.spike, self.slab, rate.expand(self.weight.shape))

    @torch.no_grad()
    def prune(self, threshold: float = ACTIVE_LOADING) -> None:
        """Set loadings outside the support to zero for good; see :func:`active_loadings`."""
        self.support.copy_(active_loadings(self.weight, self.inclusion_probability, threshold))
        self.pruned = True


def active_loadings(
    loadings: Tensor, inclusion: Tensor, threshold: float = ACTIVE_LOADING
) -> Tensor:
    """Support of the loadings, (G, K) boolean: large enough and more likely slab than spike."""
    return (loadings.abs() > threshold) & (inclusion > 0.5)


def _restore_pruned(loadings: SpikeSlabLoadings, _: object) -> None:
    loadings.pruned = not bool(loadings.support.all())


def _require_rates(spike: float | None, slab: float | None) -> None:
    for name, value in {"spike": spike, "slab": slab}.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if spike is not None and slab is not None and spike <= slab:
        raise ValueError(f"spike must be larger than slab = {slab}, got {spike}.")
