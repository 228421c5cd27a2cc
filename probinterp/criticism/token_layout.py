"""Which image every token belongs to, what kind of token it is, and where on the image it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.placement import Placed

CLASS, PATCH, REGISTER = 0, 1, 2
TYPE_NAMES = {CLASS: "class", PATCH: "patch", REGISTER: "register"}


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """How the N tokens of activations (N, L, D) make up images.

    The unit of every check is the image: tokens of one image are dependent. All images have the
    same number of tokens of each type, T in all, so that activations can be seen as (I, T, L, D).

    Parameters
    ----------
    image
        Index of the image of each token, shape (N,), whole numbers.
    token_type
        0 for a class token, 1 for a patch, 2 for a register, shape (N,).
    n_layers
        Number of layers, L.
    grid
        Rows and columns of the patches, or None where neighbours do not matter. The patches of an
        image are in reading order, row by row.

    Raises
    ------
    ValueError
        If the shapes do not agree, a type is unknown, images differ in their tokens or the
        number of patches is not that of the grid.

    Examples
    --------
    >>> import torch
    >>> layout = TokenLayout(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), n_layers=2)
    >>> layout.n_images, layout.cells
    (2, ('layer 0, class', 'layer 1, class', 'layer 0, patch', 'layer 1, patch'))
    """

    image: Tensor
    token_type: Tensor
    n_layers: int
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 1 or len(self.image) == 0 or self.image.is_floating_point():
            raise ValueError(
                "image must hold the whole number of the image of each token, shape (N,), got "
                f"shape {tuple(self.image.shape)} of {self.image.dtype}."
            )
        if self.token_type.shape != self.image.shape:
            raise ValueError(
                f"token_type must have shape {tuple(self.image.shape)} like image, got "
                f"{tuple(self.token_type.shape)}."
            )
        if self.n_layers < 1:
            raise ValueError(f"n_layers must be at least 1, got {self.n_layers}.")
        _require_equal_images(self._counts, self._kinds)
        if self.grid is not None and self.n_tokens_of.get(PATCH, 0) != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"a grid of {self.grid[0]} x {self.grid[1]} needs as many patches in each image, "
                f"got {self.n_tokens_of.get(PATCH, 0)}."
            )

    @cached_property
    def images(self) -> Tensor:
        """Index of each image in increasing order, shape (I,)."""
        return self.image.unique()

    @property
    def n_images(self) -> int:
        """Number of images, I."""
        return len(self.images)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of an image, T."""
        return len(self.image) // self.n_images

    @cached_property
    def types(self) -> tuple[int, ...]:
        """Token types that occur, in increasing order."""
        return tuple(self._kinds.tolist())

    @cached_property
    def n_tokens_of(self) -> dict[int, int]:
        """Tokens of each type in an image."""
        return dict(zip(self.types, self._counts[0].tolist(), strict=True))

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of layers by token type, the layers of the first type first."""
        return tuple(
            f"layer {layer}, {TYPE_NAMES[kind]}"
            for kind in self.types
            for layer in range(self.n_layers)
        )

    def slice_of(self, kind: int) -> slice:
        """Where the tokens of a type lie among the T of an image, after :meth:`by_image`."""
        if kind not in self.types:
            known = ", ".join(TYPE_NAMES[one] for one in self.types)
            raise ValueError(f"the tokens are of type {known}; none is {TYPE_NAMES[kind]}.")
        start = sum(self.n_tokens_of[one] for one in self.types if one < kind)
        return slice(start, start + self.n_tokens_of[kind])

    def by_image(self, x: Tensor) -> Tensor:
        """Tokens (N, ...) as (I, T, ...): images in increasing order, types in theirs."""
        if len(x) != len(self.image):
            raise ValueError(f"the layout has {len(self.image)} tokens, the data have {len(x)}.")
        if not self._in_order:
            x = x.index_select(0, self._order.beside(x))
        return x.unflatten(0, (self.n_images, self.n_tokens))

    def blocks(self, n_images: int) -> Iterator[tuple[Tensor, TokenLayout]]:
        """Parts of at most ``n_images`` images: indices of their tokens, and their layout."""
        if n_images < 1:
            raise ValueError(f"n_images must be at least 1, got {n_images}.")
        for some in self.images.split(n_images):
            index = torch.isin(self.image, some).nonzero().squeeze(1)
            image, kind = self.image[index], self.token_type[index]
            yield index, TokenLayout(image, kind, self.n_layers, self.grid)

    @cached_property
    def _kinds(self) -> Tensor:
        kinds = self.token_type.unique()
        if unknown := sorted(set(kinds.tolist()) - set(TYPE_NAMES)):
            raise ValueError(
                f"token types are 0 (class), 1 (patch) and 2 (register), got {unknown}."
            )
        return kinds

    @cached_property
    def _counts(self) -> Tensor:
        """Tokens of every image (rows) of every type (columns)."""
        images, kinds = self.images, self._kinds
        cell = torch.searchsorted(images, self.image) * len(kinds)
        cell = cell + torch.searchsorted(kinds, self.token_type)
        return cell.bincount(minlength=len(images) * len(kinds)).reshape(len(images), len(kinds))

    @cached_property
    def _permutation(self) -> Tensor:
        within = self.token_type.argsort(stable=True)
        return within[self.image[within].argsort(stable=True)]

    @cached_property
    def _in_order(self) -> bool:
        permutation = self._permutation
        return bool((permutation[1:] > permutation[:-1]).all())

    @cached_property
    def _order(self) -> Placed:
        return Placed(self._permutation)


def _require_equal_images(counts: Tensor, kinds: Tensor) -> None:
    unequal = (counts != counts[0]).any(1)
    if unequal.any():
        odd = counts[int(unequal.nonzero()[0])]
        wanted, got = (
            ", ".join(
                f"{n} {TYPE_NAMES[kind]}"
                for n, kind in zip(row.tolist(), kinds.tolist(), strict=True)
            )
            for row in (counts[0], odd)
        )
        raise ValueError(
            f"all images must have the same tokens; the first has {wanted}, another {got}."
        )
