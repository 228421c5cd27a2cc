"""Which source layers the last layer's prediction needs, and which suffice for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from probinterp.vision.activation_sources import to_tower
from probinterp.vision.capture import evaluating
from probinterp.vision.cascade import Codes, Proxy, Tokens, require_proxy
from probinterp.vision.class_logits import class_logits
from probinterp.vision.contributions import Contributions
from probinterp.vision.final_target import embeddings_of_sets, final_target, verify_final_target
from probinterp.vision.image_source import NO_LABEL, image_batches, image_source
from probinterp.vision.replacement import (
    Scope,
    cascade_of,
    cascading,
    kept_sources,
    reaches_embedding,
)
from probinterp.vision.towers import Tower, resolve
from probinterp.vision.zero_shot import TextEmbeddings

Sources = tuple[int, ...]


class SubsetCorrectness(NamedTuple):
    """Which images are recognised when only some sources write.

    Attributes
    ----------
    subsets
        Sets of kept sources, S of them.
    correct
        Whether each image was recognised, boolean (S, N).
    replaced
        The same with all sources, (N,).
    network
        The same by the network itself, (N,).
    scope
        Where the other sources were left out: in the last layer alone or in all layers.
    tokens
        Tokens that were replaced.
    """

    subsets: tuple[Sources, ...]
    correct: Tensor
    replaced: Tensor
    network: Tensor
    scope: Scope
    tokens: Tokens

    @property
    def accuracy(self) -> Tensor:
        """Share of images recognised with each set, (S,)."""
        return self.correct.double().mean(1)

    def of(self, kept: Iterable[int]) -> Tensor:
        """Which images are recognised with one set of sources, boolean (N,)."""
        wanted = tuple(sorted(kept))
        if wanted not in self.subsets:
            raise KeyError(f"sources {wanted} are not among the {len(self.subsets)} sets.")
        return self.correct[self.subsets.index(wanted)]


def all_subsets(n_layers: int, size: int) -> tuple[Sources, ...]:
    """Every set of ``size`` of the sources."""
    if not 0 <= size <= n_layers:
        raise ValueError(f"size must be in 0..{n_layers}, got {size}.")
    return tuple(combinations(range(n_layers), size))


def without_each(n_layers: int) -> tuple[Sources, ...]:
    """All sources but one, for each source in its turn."""
    return tuple(tuple(s for s in range(n_layers) if s != left_out) for left_out in range(n_layers))


def attributed_order(scores: Contributions | Tensor) -> Sources:
    """Sources of the last layer from the largest contribution to the smallest.

    Parameters
    ----------
    scores
        Contributions, or a matrix (L, L) such as their norms.
    """
    matrix = scores.matrix if isinstance(scores, Contributions) else scores
    n_layers = matrix.shape[1]
    column = matrix[:n_layers, n_layers - 1]  # without the row of the bias
    if column.isnan().any():
        raise ValueError("no source writes to the last layer, so there is no order of them.")
    return tuple(column.argsort(descending=True, stable=True).tolist())


@torch.no_grad()
def subset_correctness(
    backbone: nn.Module | Tower,
    clt: Proxy,
    images: Any,
    text: TextEmbeddings,
    *,
    subsets: Collection[Iterable[int]],
    labels: Tensor | Sequence[int] | None = None,
    scope: Scope = "final",
    tokens: Tokens = "all",
    codes: Codes = "mean",
    preprocess: Callable[[Any], Tensor] | None = None,
    batch_size: int = 64,
    same_weights: bool = True,
    progress: bool = False,
) -> SubsetCorrectness:
    r"""Zero-shot correctness with every layer replaced and only some sources writing.

    .. math:: \hat y^j = b^j + \sum_{i \in K,\, i \le j} z^i W^{i \to j}

    Parameters
    ----------
    backbone
        CLIP network.
    clt
        Transcoder for this network.
    images
        See :func:`~probinterp.vision.image_source.image_source`.
    text
        Class embeddings, see :func:`~probinterp.vision.text_embeddings`.
    subsets
        Sets K of kept sources, such as :func:`all_subsets` (sufficiency) or :func:`without_each`
        (necessity).
    labels, preprocess
        Classes of the images and picture transform, where ``images`` do not bring them.
    scope
        ``"final"``: sources are left out in the last layer alone. The parts of its sum are made
        once, and each set costs no more than what comes after the last block: hundreds of sets
        in one pass. ``"all"``: sources are left out in all layers, one cascade for each set.
    tokens, codes, same_weights
        See :func:`~probinterp.vision.replace_mlps`.
    batch_size
        Images in one pass.
    progress
        Show batches done and the time left.

    Returns
    -------
    SubsetCorrectness
        By set and image.

    Raises
    ------
    ValueError
        If an image has no label, a source does not exist, or the tokens never reach the embedding
        from the final layer, so that no set could matter there (``scope="final"``).
    UnsupportedTowerError
        If the last block is not a sum that can be taken apart (``scope="final"``).
    """
    tower = resolve(backbone)
    sets = tuple(tuple(sorted(set(subset))) for subset in subsets)
    evaluation = _Evaluation(tower, clt, text, sets, scope, tokens, codes)
    require_proxy(tower, clt, same_weights=same_weights)
    source = image_source(images, preprocess=preprocess, labels=labels)
    size = tower.image_size
    batches = image_batches(source, range(len(source)), batch_size, image_size=size)
    n_batches = -(-len(source) // batch_size)
    found = []
    with evaluating(tower.backbone):
        for pixels, known in tqdm(batches, total=n_batches, unit="batch", disable=not progress):
            if (known == NO_LABEL).any():
                raise ValueError("every image needs a label, because correctness is counted.")
            found.append(evaluation.correct(to_tower(tower, pixels), known))
    correct = torch.cat(found, 1)
    return SubsetCorrectness(sets, correct[2:], correct[1], correct[0], scope, tokens)


class _Evaluation:
    """Correctness of a batch: by the network, by the whole proxy, and by each set of sources."""

    def __init__(
        self,
        tower: Tower,
        clt: Proxy,
        text: TextEmbeddings,
        sets: Sequence[Sources],
        scope: Scope,
        tokens: Tokens,
        codes: Codes,
    ) -> None:
        for kept in sets:
            kept_sources(tower.n_layers, kept, None)
        last = (tower.n_layers - 1,)
        if scope == "final" and not reaches_embedding(tower, last, tokens):
            raise ValueError(
                f"{tokens} tokens of the last layer never reach the embedding of this tower, so no "
                "set of sources can matter there: use scope='all' or other tokens."
            )
        everything = tuple(range(tower.n_layers))
        self.tower, self.text, self.scope = tower, text, scope
        self._sets = [everything, *sets]
        self._cascades = [
            cascade_of(tower, clt, tokens=tokens, kept=kept, scope=scope, codes=codes)
            for kept in self._sets
        ]
        self._verified = False

    def correct(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Whether images are recognised, boolean (2 + S, B)."""
        network = self.tower.encode_image(pixels).unsqueeze(0)
        found = self._final(pixels) if self.scope == "final" else self._all(pixels)
        logits = class_logits(
            self.tower.backbone, torch.cat([network, found]), self.text.embeddings
        )
        return logits.argmax(-1).cpu() == labels  # of equal logits the first class

    def _all(self, pixels: Tensor) -> Tensor:
        embeddings = []
        for cascade in self._cascades:
            with cascading(cascade):
                embeddings.append(self.tower.encode_image(pixels))
        return torch.stack(embeddings)

    def _final(self, pixels: Tensor) -> Tensor:
        kept = torch.zeros(len(self._sets), self.tower.n_layers, dtype=torch.bool)
        for row, sources in zip(kept, self._sets, strict=True):
            row[list(sources)] = True
        parts = final_target(self._cascades[0], pixels)
        found = embeddings_of_sets(self.tower, parts, kept.to(pixels.device), pixels)
        if not self._verified:
            with cascading(self._cascades[0]):
                verify_final_target(self.tower, found[0], self.tower.encode_image(pixels))
            self._verified = True
        return found
