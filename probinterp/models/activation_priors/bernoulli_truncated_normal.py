"""Non-negative codes with gates."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from probinterp.models.activation_priors.spike_slab import SpikeSlabPrior
from probinterp.spike_slab import PositiveNormal


class BernoulliTruncatedNormal(SpikeSlabPrior):
    r"""Non-negative spike-and-slab codes: a gate times a normal value above zero.

    With :math:`a = h / s`, :math:`\lambda = \phi(a) / \Phi(a)` and :math:`m = h + s \lambda`,

    .. math:: \mathrm{KL} = \mathrm{KL}(\pi \,\|\, \rho) + \pi \Big(\tfrac{s^2 + h m}{2}
        - \tfrac{1 - a \lambda}{2} - \log 2 s - \log \Phi(a)\Big), \quad E z = \pi m, \quad
        \mathrm{Var}\, z = \pi (s^2 + h m) - \pi^2 m^2 .

    The prior slab is half-normal. See :class:`SpikeSlabPrior` for the parameters.
    """

    def slab(self, loc: Tensor, scale: Tensor) -> Distribution:
        """Normal distribution of values above zero."""
        return PositiveNormal(loc, scale)
