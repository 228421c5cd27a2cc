"""Codes that follow a forward pass, and how a proxy stands in the place of the MLPs meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from probinterp.vision.towers import CLASS, PATCH, REGISTER, Tower, TowerMismatchError

Tokens = Literal["cls", "patch", "all"]
Codes = Literal["mean", "hard", "sample"]

_REPLACED: WeakSet[nn.Module] = WeakSet()  # towers in which a proxy stands at the moment
_LOCK = threading.Lock()


class Proxy(Protocol):
    """What may stand in the place of the MLPs: a transcoder, or anything with these methods."""

    @property
    def n_layers(self) -> int:
        """Number of layers, L."""

    @property
    def width(self) -> int:
        """Channels, D."""

    def encode_layer(self, inputs: Tensor, layer: int) -> Tensor:
        """Codes (N, H) of one layer's inputs (N, D)."""

    def decode_target(
        self, codes: Sequence[Tensor | None], target: int, inputs: Tensor | None = None
    ) -> Tensor:
        """Outputs (N, D) of one layer; codes of the layers up to it, None for one left out."""


def require_proxy(tower: Tower, clt: Proxy, *, same_weights: bool = True) -> None:
    """Refuse a proxy that was not made for this tower.

    Parameters
    ----------
    tower
        Tower that the proxy shall stand in.
    clt
        Proxy; its ``metadata["backbone"]``, where it has one, is what :meth:`Tower.record` gave.
    same_weights
        Whether weights and precision must be those of the record, too.

    Raises
    ------
    TowerMismatchError
        If layers, width, hooks, weights or preprocessing differ.
    ValueError
        If tower and proxy are on different devices.
    """
    shape, expected = (clt.n_layers, clt.width), (tower.n_layers, tower.width)
    if shape != expected:
        raise TowerMismatchError(
            f"the proxy has {shape[0]} layers of width {shape[1]}, the tower {expected[0]} of "
            f"width {expected[1]}."
        )
    record = getattr(clt, "metadata", {}).get("backbone")
    if record is not None:
        tower.require(record, weights=same_weights)
    weight = _first_weight(clt)
    if weight is not None and weight.device != tower.device:
        raise ValueError(f"the proxy is on {weight.device}, the tower on {tower.device}.")


def token_mask(tower: Tower, tokens: Tokens, n_tokens: int | None = None) -> Tensor:
    """Which tokens of an image are meant, boolean (T,); registers never are.

    Raises
    ------
    ValueError
        If the kind is unknown or the tower has no such token.
    """
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens must be one of {', '.join(get_args(Tokens))}, got {tokens!r}.")
    types = tower.token_types(n_tokens)
    if tokens == "all":
        return types != REGISTER
    chosen = types == (CLASS if tokens == "cls" else PATCH)
    if not chosen.any():
        raise ValueError(f"the tower has no {tokens} tokens.")
    return chosen


@dataclass(frozen=True)
class Placement:
    """Where a proxy stands and what it writes.

    Attributes
    ----------
    layers
        Layers whose MLPs are replaced, ascending; contiguous or not.
    tokens
        Tokens that are replaced.
    sources
        For each of ``layers`` the sources that write to it.
    codes
        Posterior mean, hard code, or a draw.
    seed
        Seed of the draws.
    """

    layers: tuple[int, ...]
    tokens: Tokens
    sources: Mapping[int, frozenset[int]]
    codes: Codes = "mean"
    seed: int = 0

    @property
    def encoded(self) -> frozenset[int]:
        """Layers whose codes are needed."""
        return frozenset().union(*self.sources.values())


class Cascade:
    """One forward pass after the other with codes from the stream as it is at that moment.

    The blocks call :meth:`encode` or :meth:`output` in their order; every code is taken from what
    the MLP of its layer reads in this very pass, after the replacements below it.
    """

    def __init__(self, tower: Tower, clt: Proxy, placement: Placement) -> None:
        if placement.codes not in get_args(Codes):
            expected = ", ".join(get_args(Codes))
            raise ValueError(f"codes must be one of {expected}, got {placement.codes!r}.")
        token_mask(tower, placement.tokens)
        self.tower, self.clt, self.placement = tower, clt, placement
        weight = _first_weight(clt)
        self._dtype = tower.dtype if weight is None else weight.dtype
        self._thread = threading.get_ident()
        self._decoding = False
        self._codes: dict[int, Tensor] = {}
        self._index: dict[int, Tensor | None] = {}
        self._passes = np.zeros(tower.n_layers, np.int64)

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Keep the codes of a layer's input ``x``, as its block sees it; its rows (N, D)."""
        rows = self._rows(x)
        if layer in self.placement.encoded:
            with torch.autocast(x.device.type, enabled=False):
                self._codes[layer] = self._encoded(rows, layer)
        return rows

    def output(self, layer: int, x: Tensor) -> Tensor:
        """What the MLP of a layer hands on now, given its input ``x``, both as its block sees."""
        if self._decoding:  # the proxy itself asks the MLP
            return self._true(layer, x)
        rows = self.encode(layer, x)
        self._decoding = True
        try:
            with torch.autocast(x.device.type, enabled=False):
                made = self.clt.decode_target(self.codes_for(layer), layer, rows)
        finally:
            self._decoding = False
        made = made.expand(len(rows), -1)  # one row where nothing is left but the bias
        if layer == self.placement.layers[-1]:
            self._codes.clear()
        return self.among_true(layer, x, made)

    def codes_for(self, target: int) -> list[Tensor | None]:
        """Codes (N, H) of the sources 0 to ``target``; None for one that does not write to it."""
        sources = self.placement.sources[target]
        missing = [s for s in sorted(sources) if s not in self._codes]
        if missing:
            raise RuntimeError(
                f"block {target} ran before blocks {missing}: only whole forward passes can be "
                "followed."
            )
        return [self._codes[s] if s in sources else None for s in range(target + 1)]

    def among_true(self, layer: int, x: Tensor, made: Tensor) -> Tensor:
        """Rows (N, D) among what the MLP itself makes of the other tokens, as the block sees it.

        The MLP is not computed where every token is replaced; else on all tokens, so that the
        others have bit by bit what they would have had.
        """
        made = made.to(x.dtype)
        n_images, n_tokens = self.tower.to_images_first(x).shape[:2]
        index = self.token_index(n_tokens, x.device)
        if index is None:
            return self.tower.from_images_first(made.reshape(n_images, n_tokens, -1))
        true = self.tower.to_images_first(self._true(layer, x)).clone()
        true[:, index] = made.reshape(n_images, len(index), -1).to(true.dtype)
        return self.tower.from_images_first(true)

    def token_index(self, n_tokens: int, device: torch.device) -> Tensor | None:
        """Places of the tokens that are replaced, among ``n_tokens``; None for all."""
        if n_tokens not in self._index:
            chosen = token_mask(self.tower, self.placement.tokens, n_tokens)
            place = None if chosen.all() else chosen.nonzero().flatten().to(device)
            self._index[n_tokens] = place
        return self._index[n_tokens]

    def _true(self, layer: int, x: Tensor) -> Tensor:
        mlp = self.tower.mlps[layer]
        return type(mlp).forward(mlp, x)  # of the class: that of the instance is the proxy's

    def _encoded(self, rows: Tensor, layer: int) -> Tensor:
        if self.placement.codes == "mean":
            return self.clt.encode_layer(rows, layer)
        posterior = self.clt.posterior_codes_of(rows, layer)  # type: ignore[attr-defined]
        if self.placement.codes == "hard":
            return posterior.hard()
        entropy = (self.placement.seed, int(self._passes[layer]), layer)
        self._passes[layer] += 1  # other images, other draws
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return posterior.sample(seed=seed).reshape(len(rows), -1)

    def _rows(self, x: Tensor) -> Tensor:
        """Inputs (N, D) of the chosen tokens, images first, in the type of the proxy."""
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "the MLPs of this tower are replaced in another thread; use one tower per thread."
            )
        tokens = self.tower.to_images_first(x)
        index = self.token_index(tokens.shape[1], x.device)
        tokens = tokens if index is None else tokens[:, index]
        return tokens.reshape(-1, tokens.shape[2]).to(self._dtype)


@contextmanager
def installed(
    tower: Tower,
    forwards: Mapping[int, Callable[[Tensor], Tensor]],
    watchers: Mapping[int, Callable[[Tensor], Any]],
) -> Iterator[None]:
    """Functions in the place of MLPs, and others that see what MLPs read before they run.

    ``forward`` of the instance hides that of the class, so that parameters, names and the MLP
    itself stay as they are; afterwards the tower is what it was, also after an error.

    Parameters
    ----------
    tower
        The tower.
    forwards
        Layer to a function of the MLP's input, called instead of the MLP.
    watchers
        Layer to a function of the MLP's input, called before it.

    Raises
    ------
    RuntimeError
        If something stands in the place of an MLP of this tower already.
    """
    with _LOCK:
        taken = [i for i, mlp in enumerate(tower.mlps) if "forward" in vars(mlp)]
        if taken or tower.visual in _REPLACED:
            raise RuntimeError(
                "MLPs of this tower are replaced at the moment; replacements cannot be nested."
            )
        _REPLACED.add(tower.visual)
    handles = []
    try:
        for layer, watch in watchers.items():
            handles.append(
                tower.mlps[layer].register_forward_pre_hook(
                    lambda _, arguments, watch=watch: _seen(watch, arguments)
                )
            )
        for layer, forward in forwards.items():
            tower.mlps[layer].forward = forward
        yield
    finally:
        for layer in forwards:
            vars(tower.mlps[layer]).pop("forward", None)
        for handle in handles:
            handle.remove()
        _REPLACED.discard(tower.visual)


def _seen(watch: Callable[[Tensor], Any], arguments: tuple[Tensor, ...]) -> None:
    watch(arguments[0])


def _first_weight(clt: Any) -> Tensor | None:
    """A parameter or, where there is none, a buffer of floating point."""
    if not isinstance(clt, nn.Module):
        return None
    return next((t for t in (*clt.parameters(), *clt.buffers()) if t.is_floating_point()), None)
