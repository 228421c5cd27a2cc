"""Decoders of a transcoder: their parameters and how they are laid out in memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from probinterp.configuration import Configured
from probinterp.models.activation_priors import ActivationPrior
from probinterp.triangular_decoding import (
    SparseCodes,
    by_source,
    by_target,
    prefix_decode,
    reference_decode,
    sparse_decode,
    wide_decode,
)

Layout = Literal["target", "source", "reference"]
SPARSE_SHARE = 64  # latents for one active code from which rows are gathered


class TriangularDecoder(nn.Module):
    r"""Decoders of L layers of H latents each to themselves and all later layers.

    Parameters
    ----------
    n_layers, n_latents, width
        L, H and D.
    cross_layer
        Whether a layer writes to later ones too.
    layout
        ``"target"``: packed by target, for dense codes. ``"source"``: packed by source, for codes
        of which few are active. ``"reference"``: packed by target, decoded by a plain double loop.
        Weights saved in another layout are converted when they are loaded.
    """

    def __init__(
        self, n_layers: int, n_latents: int, width: int, *, cross_layer: bool, layout: Layout
    ) -> None:
        super().__init__()
        self.n_layers, self.n_latents, self.width = n_layers, n_latents, width
        self.cross_layer, self.layout = cross_layer, layout
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(s)) for s in self._shapes(layout))
        self.register_load_state_dict_pre_hook(_convert)

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (B, L, D) of dense codes (B, L, H)."""
        decode = {"target": prefix_decode, "source": wide_decode, "reference": reference_decode}
        return decode[self.layout](z, list(self.weights))

    def decode_sparse(self, codes: SparseCodes) -> Tensor:
        """Outputs (B, L, D) of codes of which few are active."""
        if self.layout != "source":
            return self(codes.dense(self.n_latents))
        return sparse_decode(codes, list(self.weights))

    def by_target(self) -> list[Tensor]:
        """One matrix a target, ((j + 1) H, D); the parameters themselves if packed so."""
        packed = list(self.weights)
        return by_target(packed, self.width) if self.layout == "source" else packed

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Sources and targets that are connected."""
        for target in range(self.n_layers):
            for source in range(0 if self.cross_layer else target, target + 1):
                yield source, target

    def block(self, source: int, target: int) -> Tensor:
        """Decoder of one source for one target, (H, D): a view of the parameters."""
        if not (0 <= source <= target < self.n_layers):
            raise ValueError(
                f"0 <= source <= target < {self.n_layers} expected, got source {source} and "
                f"target {target}."
            )
        if not self.cross_layer and source != target:
            raise ValueError(f"layer {source} does not write to {target}: cross_layer is False.")
        if self.layout == "source":
            first = (target - source) * self.width
            return self.weights[source][:, first : first + self.width]
        first = (source if self.cross_layer else 0) * self.n_latents
        return self.weights[target][first : first + self.n_latents]

    def squared_norms(self, precision: Tensor) -> list[Tensor]:
        r"""Weighted squared norms :math:`\sum_c W_{ic}^2 \tau_{jc}`, one vector a target.

        Parameters
        ----------
        precision
            Weights :math:`\tau`, (L, D) or (L, 1) by target.

        Returns
        -------
        list of Tensor
            For target j the norms of all latents that write to it, ((j + 1) H,) or (H,).
        """
        sources = [[] for _ in range(self.n_layers)]  # type: list[list[Tensor]]
        for source, target in self.pairs():
            squares = self.block(source, target).square()
            weight = precision[target].expand(self.width)
            sources[target].append(squares @ weight)
        return [torch.cat(parts) for parts in sources]

    def squared_norm(self, precision: Tensor) -> Tensor:
        """Weighted squared norm of all decoders of a latent, (L, H); ``precision`` (L, D or 1)."""
        norms = [self.weights[0].new_zeros(self.n_latents) for _ in range(self.n_layers)]
        for source, target in self.pairs():
            weight = precision[target].expand(self.width)
            norms[source] = norms[source] + self.block(source, target).square() @ weight
        return torch.stack(norms)

    @torch.no_grad()
    def start(self, how: Literal["zero", "uniform", "normal"]) -> None:
        """Set starting values in place."""
        spread = 1 / math.sqrt(self.n_layers * self.width)
        for weight in self.weights:
            if how == "zero":
                weight.zero_()
            elif how == "uniform":
                weight.uniform_(-spread, spread)
            else:
                weight.normal_(0.0, spread)

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """Multiply in place the decoders for each target by a factor, (L, 1)."""
        for source, target in self.pairs():
            self.block(source, target).mul_(factor[target])

    def _shapes(self, layout: Layout) -> list[tuple[int, int]]:
        n_layers = range(1, self.n_layers + 1)
        blocks = list(n_layers) if self.cross_layer else [1] * self.n_layers
        if layout == "source":
            return [(self.n_latents, n * self.width) for n in reversed(blocks)]
        return [(n * self.n_latents, self.width) for n in blocks]


class DecoderPrior(Configured, nn.Module, ABC):
    """Prior of the decoders, whose parameters are point estimates."""

    @abstractmethod
    def allocate(self, decoder: TriangularDecoder) -> None:
        """Make what is needed for these decoders; called once, by the transcoder."""

    @abstractmethod
    def log_prob(self, decoder: TriangularDecoder) -> Tensor:
        """Log density that gradient steps see, (); zero where all is done by :meth:`update`."""

    def update(self, decoder: TriangularDecoder, n_total: int, progress: float) -> None:  # noqa: B027
        """Proximal step on the decoders and closed-form updates, after a gradient step."""

    def rescale(self, unit: Tensor) -> None:  # noqa: B027
        """Follow decoders that are multiplied by ``unit``, (L, 1), for each target."""


def layout_for(
    layout: Literal["auto", "target", "source", "reference"],
    activation: ActivationPrior,
    n_latents: int,
) -> Layout:
    """Layout that suits an activation: by source where fewer than a 64th of the codes are active.

    Raises
    ------
    ValueError
        If the layout is unknown.
    """
    if layout not in ("auto", *get_args(Layout)):
        expected = ", ".join(map(repr, ("auto", *get_args(Layout))))
        raise ValueError(f"layout must be one of {expected}, got {layout!r}.")
    if layout != "auto":
        return layout
    few = activation.n_active is not None and n_latents >= SPARSE_SHARE * activation.n_active
    return "source" if few else "target"


def _convert(decoder: TriangularDecoder, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Bring weights of another layout into this one before they are loaded."""
    names = [f"{prefix}weights.{i}" for i in range(decoder.n_layers)]
    if not all(name in state for name in names):
        return
    given = [state[name] for name in names]
    other: Layout = "target" if decoder.layout == "source" else "source"
    shapes = [tuple(weight.shape) for weight in given]
    if shapes == decoder._shapes(decoder.layout) or shapes != decoder._shapes(other):
        return
    state.update(zip(names, _packed(given, decoder), strict=True))


def _packed(weights: Sequence[Tensor], decoder: TriangularDecoder) -> list[Tensor]:
    if decoder.layout == "source":
        return by_source(weights, decoder.n_latents)
    return by_target(weights, decoder.width)
