"""What a model sees and what it must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from probinterp.configuration import Configured

OBS_PLATE = "obs"
OBS_SITE = "x"


class Batch(NamedTuple):
    """What a model sees of the data; ``x`` is always the observed target.

    Parameters
    ----------
    x
        Observed features, shape (B, G).
    study
        Index of the study of each observation, shape (B,), int64, or None; -1 for a study that
        the model does not know.
    size_factor
        Relative library size of each observation, shape (B,), positive, or None.
    mask
        True where an entry of ``x`` is observed, shape (B, G), or None where all are. Other
        entries, which must hold finite numbers, enter neither likelihood nor encoder; library
        sizes and totals are the caller's and should be those of the observed entries.
    nuisance
        Index of the technical batch of each observation, shape (B,), int64, or None.
    """

    x: Tensor
    study: Tensor | None = None
    size_factor: Tensor | None = None
    mask: Tensor | None = None
    nuisance: Tensor | None = None

    def rows(self, index: slice | Tensor) -> Batch:
        """Observations ``index`` only."""
        return Batch(*(None if value is None else value[index] for value in self))  # type: ignore[arg-type]


class ActivationBatch(NamedTuple):
    """What a transcoder sees of a network: what goes in at every layer and what comes out.

    Parameters
    ----------
    x
        Outputs of the layers, the observed target, shape (B, L, D): B tokens, L layers, width D.
    inputs
        Inputs of the layers, shape (B, L, D).
    image
        Index of the image of each token, shape (B,), int64, or None; tokens of one image are
        dependent.
    token_type
        0 for a class token, 1 for a patch, 2 for a register, shape (B,), int64, or None.
    """

    x: Tensor
    inputs: Tensor
    image: Tensor | None = None
    token_type: Tensor | None = None

    def rows(self, index: slice | Tensor) -> ActivationBatch:
        """Tokens ``index`` only."""
        return ActivationBatch(*(None if v is None else v[index] for v in self))  # type: ignore[arg-type]


AnyBatch = Batch | ActivationBatch


class ProbabilisticModel(Configured, nn.Module, ABC):
    r"""A generative program and its guide on one plain ``nn.Module``.

    Local latent sites stand inside ``pyro.plate("obs")``, global ones outside, and the observed
    site is called ``"x"``; the guide has exactly the latent sites of the model. Every parameter,
    variational ones too, is an ``nn.Parameter``; constants are buffers. Nothing else is needed
    for :func:`probinterp.fit`, :func:`probinterp.posterior` and
    :func:`probinterp.predictive_draws`.

    Attributes
    ----------
    conditional
        Whether the guide infers the local latents from covariates alone and never sees
        ``batch.x``, so that :math:`\int p(x \mid z)\, q(z \mid \text{covariates})\, dz` is a
        conditional predictive distribution.
    """

    conditional: ClassVar[bool] = False
    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))

    @abstractmethod
    def model(self, batch: Any, n_total: int | None = None) -> None:
        """Generative program p(x, z, W); ``n_total`` is the size of the whole data set."""

    @abstractmethod
    def guide(self, batch: Any, n_total: int | None = None) -> None:
        """Variational program q(z, W | x) with the latent sites of :meth:`model`."""

    def exact_elbo(
        self, batch: Any, n_total: int | None = None
    ) -> dict[str, tuple[Tensor, bool]] | None:
        """Evidence lower bound in closed form, by term; None where it has to be sampled.

        The terms are scaled to ``n_total`` observations as those of :meth:`model` and
        :meth:`guide` are, and add up to what these give on average.

        Returns
        -------
        dict or None
            By name a scalar and whether it belongs to the observations (True) or to the globals.
        """
        return None

    def exact_locals(self, batch: Any) -> dict[str, TorchDistribution] | None:
        """Exact posterior of the local latents by site, in closed form; None where unknown.

        Only for models whose globals are all parameters: there is no draw of them to condition on.
        """
        return None

    def exact_marginal(
        self, batch: Any, over: dict[str, TorchDistribution] | None = None
    ) -> TorchDistribution | None:
        """Distribution of ``batch.x`` with the local latents integrated out; None where unknown.

        Parameters
        ----------
        batch
            Covariates of the observations.
        over
            Distribution of the local latents by site; default: their prior.

        Returns
        -------
        TorchDistribution or None
            In closed form, with batch shape (N,) and event shape (G,).
        """
        return None

    def initialize(self, batch: Any, n_total: int) -> None:  # noqa: B027
        """Set data-driven starting values in place; called once, before the very first step.

        A model that was fitted before, or loaded, goes on from where it is.
        """

    def anneal(self, progress: float) -> None:  # noqa: B027
        """Set annealed quantities; ``progress`` runs from 0 to 1 over the planned steps.

        Called before every step, and with 1 before an evaluation, so it must be reversible.
        """

    def after_step(self, progress: float) -> None:  # noqa: B027
        """Closed-form, proximal or other irreversible updates that follow a gradient step."""


def observations(batch: AnyBatch, n_total: int | None) -> pyro.plate:
    """Plate ``"obs"`` over a batch that stands for ``n_total`` observations.

    The minibatch is given, so Pyro draws no index of its own.
    """
    return pyro.plate(OBS_PLATE, n_total or len(batch.x), subsample=batch.x)


def require_positive(**sizes: int) -> None:
    """Raise ``ValueError`` unless every size is a positive integer."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
