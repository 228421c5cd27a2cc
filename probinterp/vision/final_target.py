"""The last layer's outputs by source, and embeddings for any set of sources that is kept there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probinterp.vision.cascade import Cascade, installed
from probinterp.vision.towers import Tower, UnsupportedTowerError

ENTRIES = 2**24  # numbers of stream in memory at once, at most


class FinalTarget(NamedTuple):
    """What the last block adds up for a batch of images after a cascade through all layers.

    Only tokens that reach the embedding are kept: the class token alone where the tower pools
    that.

    Attributes
    ----------
    stream
        Residual stream before the last MLP adds to it, (B, T, D).
    rest
        Outputs of the last layer without any source, (B, T, D): bias and skip map on replaced
        tokens, the MLP itself on others.
    parts
        What each source adds to that, (L, B, T', D), on the T' replaced tokens.
    places
        Where the replaced tokens are among the T, (T',).
    """

    stream: Tensor
    rest: Tensor
    parts: Tensor
    places: Tensor

    def outputs(self, kept: Tensor) -> Tensor:
        """Outputs of the last layer, (S, B, T, D), for S sets of kept sources, boolean (S, L)."""
        added = torch.einsum("sl,lbtd->sbtd", kept.to(self.parts), self.parts)
        outputs = self.rest.repeat(len(kept), 1, 1, 1)
        outputs[:, :, self.places] += added.to(outputs.dtype)
        return outputs


def final_target(cascade: Cascade, pixels: Tensor) -> FinalTarget:
    """Run the tower with every layer replaced and keep what the last layer is made of.

    Parameters
    ----------
    cascade
        Replacement of all layers by a transcoder, with all sources.
    pixels
        Images (B, 3, H, W).
    """
    tower, last, found = cascade.tower, cascade.tower.n_layers - 1, {}

    def collect(x: Tensor) -> Tensor:
        rows = cascade.encode(last, x)
        with torch.autocast(x.device.type, enabled=False):
            found["rest"], found["parts"], found["places"] = _parts(cascade, x, rows)
        return torch.zeros_like(x)  # so that the block returns the stream alone

    def keep(_: nn.Module, arguments: Any, output: Tensor) -> None:
        found["stream"] = tower.to_images_first(output).clone()

    forwards = {j: partial(cascade.output, j) for j in range(last)} | {last: collect}
    with installed(tower, forwards, {}):
        handle = tower.blocks[-1].register_forward_hook(keep)
        try:
            tower.encode_image(pixels)
        finally:
            handle.remove()
    visible = slice(0, tower.n_class_tokens) if tower.pooling == "cls" else slice(None)
    found["stream"], found["rest"] = found["stream"][:, visible], found["rest"][:, visible]
    return FinalTarget(**found)


def _parts(cascade: Cascade, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs without any source, what each source adds, and where."""
    tower, clt = cascade.tower, cascade.clt
    last, n_images = tower.n_layers - 1, tower.to_images_first(x).shape[0]
    nothing: list[Tensor | None] = [None] * tower.n_layers
    rest = clt.decode_target(nothing, last, rows).expand(len(rows), -1)
    rest = tower.to_images_first(cascade.among_true(last, x, rest))
    chosen = cascade.token_index(rest.shape[1], x.device)
    places = torch.arange(rest.shape[1], device=x.device) if chosen is None else chosen
    visible = slice(0, tower.n_class_tokens) if tower.pooling == "cls" else slice(None)
    places = places[visible]  # the class token comes first
    parts = rest.new_zeros(tower.n_layers, n_images, len(places), tower.width, dtype=rows.dtype)
    for source, z in enumerate(cascade.codes_for(last)):
        if z is not None:
            by_image = z.reshape(n_images, -1, z.shape[1])[:, visible]
            parts[source] = by_image @ clt.decoder(source, last)  # type: ignore[attr-defined]
    return rest, parts, places


def embeddings_of_sets(tower: Tower, found: FinalTarget, kept: Tensor, pixels: Tensor) -> Tensor:
    """Image embeddings (S, B, E) for S sets of sources that are kept in the last layer, (S, L).

    Only what comes after the last block is computed.
    """
    n_images, n_tokens, width = found.stream.shape
    at_once = max(1, ENTRIES // (n_images * n_tokens * width))
    embeddings = []
    for some in kept.split(at_once):
        outputs = found.outputs(some).to(found.stream.dtype)
        stream = found.stream + _layer_scaled(tower.blocks[-1], outputs)
        with _ending_in(tower, stream.flatten(0, 1)):
            embeddings.append(tower.encode_image(pixels[:1]).unflatten(0, stream.shape[:2]))
    return torch.cat(embeddings)


def verify_final_target(tower: Tower, by_parts: Tensor, by_cascade: Tensor) -> None:
    """Check that the parts of the last layer, all kept, give the embeddings of the cascade.

    Raises
    ------
    UnsupportedTowerError
        If not: the last block then does more with its MLP than to scale and to add it.
    """
    size = by_cascade.abs().max().clamp_min(1e-12)
    error = ((by_parts - by_cascade).abs().max() / size).item()
    if error > min(1e3 * torch.finfo(by_cascade.dtype).eps, 0.1):
        raise UnsupportedTowerError(
            f"the last block of {type(tower.visual).__name__} is no sum of its stream and its "
            f"scaled MLP (embeddings differ by {error:.1e}); use scope='all'."
        )


def _layer_scaled(block: Any, outputs: Tensor) -> Tensor:
    """MLP outputs as the block adds them to its stream."""
    for name in ("ls_2", "ls2"):
        if isinstance(getattr(block, name, None), nn.Module):
            return getattr(block, name)(outputs)
    scale = getattr(block, "gamma_2", None)
    return outputs if scale is None else outputs * scale


@contextmanager
def _ending_in(tower: Tower, stream: Tensor) -> Iterator[None]:
    """Blocks that hand on what they get, the last one ``stream`` whatever it gets."""
    *others, last = tower.blocks
    try:
        for block in others:
            block.forward = lambda x, *_, **__: x
        last.forward = lambda *_, **__: tower.from_images_first(stream)
        yield
    finally:
        for block in tower.blocks:
            vars(block).pop("forward", None)
