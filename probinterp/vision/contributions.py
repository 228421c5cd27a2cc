"""Which layers write what a transcoder predicts for each layer: contribution scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from probinterp.models.base import ActivationBatch
from probinterp.vision.towers import CLASS, PATCH

SOURCE_ENTRIES = 2**26  # codes that are in memory at once, at most
TOKEN_TYPES = {"cls": (CLASS,), "patch": (PATCH,), "all": (CLASS, PATCH)}


class DecodedCodes(Protocol):
    """What contributions need of a transcoder."""

    @property
    def n_layers(self) -> int:
        """Number of layers, L."""

    @property
    def n_latents(self) -> int:
        """Latents of each layer, H."""

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes (N, L, H)."""

    def decoder(self, source: int, target: int) -> Tensor:
        """Decoder (H, D) of one layer for another."""

    def decode_target(
        self, codes: Sequence[Tensor | None], target: int, inputs: Tensor | None = None
    ) -> Tensor:
        """Outputs (N, D) of one layer."""


class Contributions(NamedTuple):
    """Share of each source in what is predicted for each target.

    Attributes
    ----------
    matrix
        Score of source i for target j in row i and column j, (L, L), zero where i > j; one more
        row for the bias where it counts. Columns sum to 1; one is NaN where no token has an active
        code (centred: where nothing varies).
    per_image
        What the matrix is the mean of, (N, L, L): each image's own scores, NaN for a target where
        no token of the image has an active code. For centred scores see ``weight``.
    weight
        Weights of the images in that mean, (N, L) by target: 1, or 0 without a token. For centred
        scores the image's share in the variance, which may be any number above zero.
    norm
        Mean norm of what a source writes to a target, (L, L).
    images
        Number of each image, (N,) int64.
    n_tokens
        Tokens that were looked at.
    n_skipped
        Tokens without an active code for each target, (L,) int64; they have no score.
    tokens
        Kind of the tokens.
    centered
        Whether the scores are those of the variance.
    """

    matrix: Tensor
    per_image: Tensor
    weight: Tensor
    norm: Tensor
    images: Tensor
    n_tokens: int
    n_skipped: Tensor
    tokens: str
    centered: bool

    def resampled(self, weights: Tensor) -> Tensor:
        """Matrices (B, L, L) for weights (B, N) of the images, such as bootstrap counts."""
        shares = weights.double().unsqueeze(2) * self.weight
        totals = torch.einsum("bnj,nij->bij", shares, self.per_image.nan_to_num())
        return totals / shares.sum(1).unsqueeze(1)


@torch.no_grad()
def contributions(
    clt: DecodedCodes,
    data: Any,
    *,
    tokens: Literal["cls", "patch", "all"] = "all",
    centered: bool = False,
    bias: Literal["exclude", "row"] = "exclude",
    batch_size: int = 512,
) -> Contributions:
    r"""Contribution of every source layer to every target layer.

    With :math:`c_{i \to j, t} = z^i_t W^{i \to j}` and :math:`\bar y^j_t = \sum_i c_{i \to j, t}`

    .. math:: C_{i \to j} = E_x \Big[ \frac1T \sum_t
        \frac{\langle c_{i \to j, t}, \bar y^j_t \rangle}{\lVert \bar y^j_t \rVert^2} \Big],
        \qquad C^{cov}_{i \to j} = \frac{\mathrm{tr}\, \mathrm{Cov}(c_{i \to j}, \bar y^j)}
        {\mathrm{tr}\, \mathrm{Var}(\bar y^j)} .

    Negative scores are of sources that work against the sum. The first is not centred: a source
    that always writes the same has a large score. Report both.

    Parameters
    ----------
    clt
        Transcoder.
    data
        Recorded activations, or an :class:`ActivationBatch` with images.
    tokens
        ``"cls"``, ``"patch"`` or ``"all"`` for both.
    centered
        Scores of the variance over tokens, around the mean over all of them.
    bias
        ``"exclude"``: only codes count. ``"row"``: bias and skip map are one more source, the
        last row of the matrix.
    batch_size
        Tokens in memory at once, at most.

    Returns
    -------
    Contributions
        Float64, on the CPU; per image, so that intervals can be made by resampling images.

    Raises
    ------
    ValueError
        If there is no such token or images are not known.

    Notes
    -----
    Memory does not grow with the number of tokens but for the (N, L, L) scores. The centred scores
    take two passes.

    References
    ----------
    Can Cross-Layer Transcoders Replace Vision Transformer Activations? (Chatzoudis et al., 2026),
    the first score. The centred one is ours.
    """
    if bias not in ("exclude", "row"):
        raise ValueError(f'bias must be "exclude" or "row", got {bias!r}.')
    rows = _TokenRows(data, tokens, max(1, min(batch_size, _most_tokens(clt))))
    pieces = _Pieces(clt, bias == "row")
    total = _Totals(len(rows.images), clt.n_layers, pieces.n_sources)
    means = _means(rows, pieces) if centered else None
    for batch, place in rows:
        for target, parts in pieces.of(batch):
            total.add(target, place, parts, None if means is None else means[target])
    return total.result(rows, tokens, means is not None)


class _TokenRows:
    """Tokens of some kind in batches, each with the places of their images."""

    def __init__(self, data: Any, tokens: str, batch_size: int) -> None:
        if tokens not in TOKEN_TYPES:
            raise ValueError(f"tokens must be one of {', '.join(TOKEN_TYPES)}, got {tokens!r}.")
        image, types = data.image, data.token_type
        if image is None:
            raise ValueError("data must say which image each token belongs to.")
        if types is None and tokens != "all":
            raise ValueError(f"data must have token types to choose {tokens} tokens.")
        chosen = torch.ones_like(image, dtype=torch.bool)
        if types is not None:
            chosen = torch.isin(types, torch.tensor(TOKEN_TYPES[tokens], device=types.device))
        self.index = chosen.nonzero().flatten().cpu()
        if not len(self.index):
            raise ValueError(f"data have no {tokens} tokens.")
        self.images, self._place = image[chosen].cpu().unique(return_inverse=True)
        self._data, self._size = data, batch_size

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[ActivationBatch, Tensor]]:
        in_memory = isinstance(self._data, ActivationBatch)
        read = self._data.rows if in_memory else self._data.batch
        for start in range(0, len(self.index), self._size):
            part = slice(start, start + self._size)
            yield read(self.index[part]), self._place[part]


class _Pieces:
    """What the sources write to each target, in double precision."""

    def __init__(self, clt: DecodedCodes, with_bias: bool) -> None:
        self.clt, self.with_bias = clt, with_bias
        self.n_sources = clt.n_layers + with_bias
        self._cross = getattr(clt, "cross_layer", True)

    def of(self, batch: ActivationBatch) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Target and, by source, what it writes, (N, D); the bias has the number L."""
        weight = self.clt.decoder(0, 0)
        inputs = batch.inputs.to(weight.device, weight.dtype)
        z = self.clt.encode(inputs)
        for target in range(self.clt.n_layers):
            sources = range(0 if self._cross else target, target + 1)
            parts = {s: (z[:, s] @ self.clt.decoder(s, target)).double() for s in sources}
            if self.with_bias:
                nothing: list[Tensor | None] = [None] * (target + 1)
                rest = self.clt.decode_target(nothing, target, inputs[:, target])
                parts[self.clt.n_layers] = rest.double().expand(len(inputs), -1)
            yield target, parts


class _Totals:
    """Sums by image: of the scores, of the weights, of the norms."""

    def __init__(self, n_images: int, n_layers: int, n_sources: int) -> None:
        self.score = torch.zeros(n_images, n_sources, n_layers, dtype=torch.float64)
        self.weight = torch.zeros(n_images, n_layers, dtype=torch.float64)
        self.norm = torch.zeros(n_sources, n_layers, dtype=torch.float64)
        self.n_skipped = torch.zeros(n_layers, dtype=torch.int64)

    def add(
        self, target: int, place: Tensor, parts: dict[int, Tensor], means: dict[int, Tensor] | None
    ) -> None:
        """Count tokens, whose images stand at ``place``."""
        for source, part in parts.items():
            self.norm[source, target] += part.norm(dim=1).sum().cpu()
        if means is not None:
            parts = {source: part - means[source] for source, part in parts.items()}
        whole = torch.stack(list(parts.values())).sum(0)
        size = whole.square().sum(1)
        active = size > 0
        self.n_skipped[target] += int((~active).sum()) if means is None else 0
        scale = active.double() if means is not None else active / size.where(active, 1.0)
        for source, part in parts.items():
            score = (part * whole).sum(1) * scale
            self.score[:, source, target].index_add_(0, place, score.cpu())
        self.weight[:, target].index_add_(0, place, (size * scale).cpu())

    def result(self, rows: _TokenRows, tokens: str, centered: bool) -> Contributions:
        """Means over images."""
        if centered:  # rounding alone is no variance
            size = self.norm.sum(0) / len(rows)
            self.weight[:, self.weight.sum(0) / len(rows) <= 1e-12 * size.square()] = 0
        per_image = self.score / self.weight.where(self.weight > 0, torch.nan).unsqueeze(1)
        weight = self.weight if centered else (self.weight > 0).double()
        found = Contributions(
            matrix=torch.empty(0),
            per_image=per_image,
            weight=weight,
            norm=self.norm / len(rows),
            images=rows.images,
            n_tokens=len(rows),
            n_skipped=self.n_skipped,
            tokens=tokens,
            centered=centered,
        )
        everyone = torch.ones(1, len(rows.images), dtype=torch.float64)
        return found._replace(matrix=found.resampled(everyone)[0])


def _means(rows: _TokenRows, pieces: _Pieces) -> list[dict[int, Tensor]]:
    """Mean over all tokens of what each source writes to each target, (D,)."""
    means: list[dict[int, Tensor]] = [{} for _ in range(pieces.clt.n_layers)]
    for batch, _ in rows:
        for target, parts in pieces.of(batch):
            for source, part in parts.items():
                total = part.sum(0) / len(rows)
                means[target][source] = means[target].get(source, 0) + total
    return means


def _most_tokens(clt: DecodedCodes) -> int:
    return SOURCE_ENTRIES // (clt.n_layers * clt.n_latents)
