"""What the codes of a transcoder are: their prior and their posterior given an encoder's output."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.configuration import Configured


class CodeMoments(NamedTuple):
    """All that a Gaussian likelihood with a linear decoder needs to know of the codes.

    Attributes
    ----------
    mean
        Posterior mean of the codes, (B, L, H).
    variance
        Posterior variance of the codes, (B, L, H); None where codes are points.
    kl_gate, kl_slab
        KL divergence to the prior by token and layer, (B, L), of the gates and of the values of
        active codes; None where codes are points.
    """

    mean: Tensor
    variance: Tensor | None = None
    kl_gate: Tensor | None = None
    kl_slab: Tensor | None = None


class ActivationPrior(Configured, nn.Module, ABC):
    r"""Prior and variational posterior of the codes of all layers.

    Pre-activations are (B, L, H): B tokens, L layers, H latents a layer. A prior whose codes are
    points (``is_point``) is a plain activation function. Every parameter and buffer has the layers
    as its first axis or no axis at all, so that one layer can be had alone (:meth:`at_layer`).

    Attributes
    ----------
    is_point
        Whether codes are a deterministic function of the pre-activations.
    is_analytic
        Whether :meth:`moments` are exact, so that the evidence lower bound has a closed form.
    n_active
        Largest number of codes a token and layer that are not zero; None where there is no limit.
    start
        How the transcoder's weights start. ``"zero"``: decoders at zero, pre-activations centred;
        ``"uniform"``: uniform within :math:`1/\sqrt H` and :math:`1/\sqrt{LD}`; ``"normal"``:
        normal with variances 1/D and 1/(LD).
    """

    is_point: bool = False
    is_analytic: bool = True
    n_active: int | None = None
    start: Literal["zero", "uniform", "normal"] = "normal"

    @abstractmethod
    def allocate(self, n_layers: int, n_latents: int) -> None:
        """Make the parameters; called once, by the transcoder."""

    @abstractmethod
    def moments(self, pre: Tensor) -> CodeMoments:
        """Mean and variance of the codes and their KL divergence to the prior."""

    @abstractmethod
    def hard(self, pre: Tensor) -> Tensor:
        """The sparse code that stands for the posterior, (B, L, H): most entries exactly zero."""

    def select(self, pre: Tensor) -> Tensor | None:
        """Latents of which the codes of :meth:`moments` may be active, (B, L, k) int64.

        None where they are not few.
        """
        return None

    def selected(self, pre: Tensor) -> Tensor:
        """Codes of the pre-activations (B, L, k) that :meth:`select` chose."""
        raise NotImplementedError(f"{type(self).__name__} selects no latents.")

    def at_layer(self, layer: int) -> Self:
        """The same for one layer alone, whose pre-activations are (B, 1, H); it is not trained."""
        alone = copy.copy(self)
        named = {**self._parameters, **self._buffers}
        alone._parameters = {}
        alone._buffers = {
            name: value[layer : layer + 1] if value is not None and value.ndim else value
            for name, value in named.items()
        }
        alone._modules = {
            name: part.at_layer(layer) if isinstance(part, ActivationPrior) else part
            for name, part in self._modules.items()
        }
        return alone

    def inclusion(self, pre: Tensor) -> Tensor:
        """Probability that each code is active, (B, L, H); 0 or 1 where codes are points."""
        return (self.hard(pre) != 0).to(pre.dtype)

    def prior(self) -> TorchDistribution | None:
        """Prior of one token's codes, event shape (L, H); None where codes are points."""
        return None

    def posterior(self, pre: Tensor) -> TorchDistribution | None:
        """Posterior of the codes, batch shape (B,), event shape (L, H); None for points."""
        return None

    def penalty(self, pre: Tensor, decoder_norm: Callable[[], Tensor]) -> Tensor | None:
        """Extra loss by token, (B,); ``decoder_norm()`` is the norm of all decoders, (L, H)."""
        return None

    def select_dead(self, pre: Tensor, dead: Tensor, k: int) -> Tensor | None:
        """The k strongest dead latents, (B, L, k) int64, given which are, (L, H).

        None where the activation does not revive latents; others where fewer than k are dead.
        """
        return None

    def initial_bias(self, pre: Tensor) -> Tensor | None:
        """Encoder bias, (L, H), that gives pre-activations without a bias a sensible start."""
        return None

    def anneal(self, progress: float) -> None:  # noqa: B027
        """Set scheduled quantities; ``progress`` runs from 0 to 1, reversibly."""

    def update(self, pre: Tensor, n_total: int, progress: float) -> None:  # noqa: B027
        """Closed-form updates after a step, from that step's pre-activations."""
