"""Recorded MLP inputs and outputs as data that a transcoder can be fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probinterp.models.base import ActivationBatch
from probinterp.vision.activation_sources import ActivationSource
from probinterp.vision.capture import evaluating, recompute
from probinterp.vision.towers import CLASS, PATCH, REGISTER, Tower, TowerMismatchError

TOKEN_TYPES = {"cls": CLASS, "patch": PATCH, "register": REGISTER}


class ActivationData:
    """Tokens of images with what every MLP reads and writes on them.

    Observations are tokens, image by image; ``len`` counts them, ``batch(index)`` gives some.
    Tokens of one image are dependent, so only whole images are split, and minibatches mix many
    images. Where outputs are not stored the MLPs run on the stored inputs: the pair is exact
    whatever the precision of the store. Weights that have changed since are refused, but for
    writes through ``.data``, which leave no trace.

    Attributes
    ----------
    manifest
        What was recorded, from which network, with which hooks, types and hashes.
    image_index
        Number, in the recording, of each image that is here, (n_images,).
    token_index
        Tokens kept of each image, positions among those recorded, (T,).
    """

    def __init__(
        self,
        source: ActivationSource,
        manifest: dict[str, Any],
        tower: Tower | None,
        image_labels: Tensor | None,
        image_index: Tensor | None = None,
        token_index: Tensor | None = None,
    ) -> None:
        self.source, self.manifest, self.tower = source, manifest, tower
        self._image_labels = image_labels
        n_images, _, n_tokens, _ = manifest["shape"]
        self.image_index = torch.arange(n_images) if image_index is None else image_index
        self.token_index = torch.arange(n_tokens) if token_index is None else token_index
        self._recorded_types = torch.tensor(manifest["token_type"])
        self._weights = None if tower is None else _stamp(tower)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the tower that were recorded."""
        return tuple(self.manifest["layers"])

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.image_index)

    @property
    def n_tokens(self) -> int:
        """Tokens of each image, T."""
        return len(self.token_index)

    @property
    def block_size(self) -> int:
        """Tokens that are cheapest to read together: those of one image, or 1 in memory."""
        return self.n_tokens if self.source.by_image else 1

    @property
    def image(self) -> Tensor:
        """Image of each token, by its number in the recording, (N,) int64."""
        return self.image_index.repeat_interleave(self.n_tokens)

    @property
    def token_type(self) -> Tensor:
        """Type of each token, (N,) int64: 0 class token, 1 patch, 2 register."""
        return self._recorded_types[self.token_index].repeat(self.n_images)

    @property
    def labels(self) -> Tensor | None:
        """Class of each image, (n_images,) int64, -1 where unknown; None without labels."""
        return None if self._image_labels is None else self._image_labels[self.image_index]

    def __len__(self) -> int:
        return self.n_images * self.n_tokens

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.n_images} images x {self.n_tokens} tokens, "
            f"layers {list(self.layers)}, width {self.manifest['shape'][-1]}, "
            f"{self.manifest['dtype']})"
        )

    def batch(self, index: Tensor | None = None) -> ActivationBatch:
        """Tokens ``index`` (B,), or all of them, in float32 on the CPU."""
        index = torch.arange(len(self)) if index is None else torch.as_tensor(index)
        image = self.image_index[index // self.n_tokens]
        token = self.token_index[index % self.n_tokens]
        inputs, outputs = self.source.rows(image, token)
        if outputs is None:
            inputs, outputs = self._recomputed(inputs)
        return ActivationBatch(outputs, inputs, image, self._recorded_types[token])

    def images(self, index: Tensor | Sequence[int] | slice) -> ActivationData:
        """Some of the images, by their place here, with all their tokens."""
        chosen = index if isinstance(index, slice) else torch.as_tensor(index)
        return self._part(image_index=self.image_index[chosen])

    def of_type(self, tokens: str) -> ActivationData:
        """Tokens of one type only: ``"cls"``, ``"patch"`` or ``"register"``.

        Raises
        ------
        ValueError
            If none was recorded.
        """
        if tokens not in TOKEN_TYPES:
            raise ValueError(f"tokens must be one of {', '.join(TOKEN_TYPES)}, got {tokens!r}.")
        chosen = self._recorded_types[self.token_index] == TOKEN_TYPES[tokens]
        if not chosen.any():
            raise ValueError(f"no {tokens} tokens were recorded: {self.manifest['tokens']}.")
        return self._part(token_index=self.token_index[chosen])

    def split(
        self, by: str = "image", *, fraction: float = 0.2, seed: int = 0
    ) -> tuple[ActivationData, ActivationData]:
        """Training and held-out part; no image is in both.

        Parameters
        ----------
        by
            ``"image"``: single tokens are never held out, because the tokens of one image are
            dependent.
        fraction
            Share of the images that is held out.
        seed
            Seed of the choice.
        """
        if by != "image":
            raise ValueError(f"activations are split by 'image', got {by!r}.")
        n_heldout = round(fraction * self.n_images)
        if not 0 < n_heldout < self.n_images:
            raise ValueError(
                f"fraction {fraction} of {self.n_images} images leaves one part empty."
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.n_images, generator=generator)
        heldout, train = order[:n_heldout].sort().values, order[n_heldout:].sort().values
        return self.images(train), self.images(heldout)

    def _part(self, **changes: Tensor) -> ActivationData:
        index = {"image_index": self.image_index, "token_index": self.token_index} | changes
        return ActivationData(self.source, self.manifest, self.tower, self._image_labels, **index)

    def _recomputed(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs as the MLPs read them, and their outputs."""
        tower = self.tower
        if tower is None:
            raise ValueError(
                "outputs are not stored; open the recording with backbone= so that its MLPs can "
                "make them again."
            )
        if self._weights != _stamp(tower):
            self._require_weights(tower)
        exact = inputs.to(tower.device, tower.dtype)
        with evaluating(tower.visual):
            outputs = recompute(tower, self.layers, exact)
        return exact.float().cpu(), outputs.float().cpu()

    def _require_weights(self, tower: Tower) -> None:
        recorded = self.manifest["backbone"]["mlp_sha256"]
        if tower.record()["mlp_sha256"] != recorded:
            raise TowerMismatchError(
                "the MLPs were changed after the recording: their outputs cannot be made again."
            )
        self._weights = _stamp(tower)


def _stamp(tower: Tower) -> tuple[tuple[int, int], ...]:
    """Changes when a weight of an MLP is written to or moved; much cheaper than a hash."""
    weights = (weight for mlp in tower.mlps for weight in mlp.parameters())
    return tuple((weight.data_ptr(), weight._version) for weight in weights)
