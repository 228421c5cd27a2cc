"""Signed codes with gates."""

from __future__ import annotations

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from probinterp.models.activation_priors.spike_slab import SpikeSlabPrior


class BernoulliGaussian(SpikeSlabPrior):
    r"""Signed spike-and-slab codes: a gate times a normal value.

    .. math:: \mathrm{KL} = \mathrm{KL}(\pi \,\|\, \rho)
        + \pi \Big(\tfrac{s^2 + h^2 - 1}{2} - \log s\Big), \quad
        E z = \pi h, \quad \mathrm{Var}\, z = \pi s^2 + \pi (1 - \pi) h^2

    See :class:`SpikeSlabPrior` for the parameters.

    References
    ----------
    Variational Sparse Coding (Tonolini et al., 2020).
    """

    def slab(self, loc: Tensor, scale: Tensor) -> Distribution:
        """Normal distribution."""
        return dist.Normal(loc, scale.expand_as(loc))
