"""What a proxy does to a network: accuracy by window and token type, drift, reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from probinterp.criticism.logit_drift import LogitDrift, logit_drift
from probinterp.inference.reconstruction import ReconstructionStatistics, reconstruction_statistics
from probinterp.vision.activation_data import TOKEN_TYPES, ActivationData
from probinterp.vision.activations import stream_activations
from probinterp.vision.cascade import Codes, Tokens, require_proxy
from probinterp.vision.replacement import cascade_of, cascading, reaches_embedding
from probinterp.vision.towers import Tower, resolve
from probinterp.vision.zero_shot import TextEmbeddings, ZeroShotResult, text_embeddings, zero_shot


class WindowResult(NamedTuple):
    """The network with a proxy in one window.

    Attributes
    ----------
    layers
        Layers that were replaced.
    tokens
        Tokens that were replaced.
    visible
        Whether the replaced outputs reach the embedding at all; where not, no change of accuracy
        is no evidence.
    result
        What this network says of each image.
    drift
        How far its logits are from those of the network itself.
    """

    layers: tuple[int, ...]
    tokens: Tokens
    visible: bool
    result: ZeroShotResult
    drift: LogitDrift

    @property
    def correct(self) -> Tensor:
        """Whether each image was recognised, boolean (N,)."""
        assert self.result.correct is not None
        return self.result.correct


class ReplacementEvaluation(NamedTuple):
    """A proxy in a network, image by image.

    Attributes
    ----------
    network
        What the network itself says of each image.
    windows
        What it says with the proxy, by window and token type.
    reconstruction
        Name of a token type (``"cls"``, ``"patch"``) to sums by image and layer, on activations
        of the network itself.
    """

    network: ZeroShotResult
    windows: tuple[WindowResult, ...]
    reconstruction: dict[str, ReconstructionStatistics]

    @property
    def correct(self) -> Tensor:
        """Whether the network itself recognised each image, boolean (N,)."""
        assert self.network.correct is not None
        return self.network.correct

    def window(self, layers: Iterable[int], tokens: Tokens) -> WindowResult:
        """Result of one window and token type.

        Raises
        ------
        KeyError
            If it was not evaluated.
        """
        wanted = tuple(layers)
        for window in self.windows:
            if (window.layers, window.tokens) == (wanted, tokens):
                return window
        raise KeyError(f"layers {list(wanted)} with {tokens} tokens were not evaluated.")

    def rows(self) -> list[dict[str, Any]]:
        """One row for each window and token type, for a table."""
        return [
            {
                "layers": list(window.layers),
                "tokens": window.tokens,
                "visible": window.visible,
                "n_images": len(self.correct),
                "accuracy_network": self.network.accuracy,
                "accuracy": window.result.accuracy,
                "lost": int((self.correct & ~window.correct).sum()),
                "gained": int((~self.correct & window.correct).sum()),
                "mean_kl": window.drift.kl.mean().item(),
                "largest_drift": window.drift.largest.max().item(),
            }
            for window in self.windows
        ]


def evaluate_replacement(
    backbone: nn.Module | Tower,
    clt: Any,
    images: Any,
    labels: Tensor | Sequence[int] | None,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    windows: Iterable[Sequence[int]] | None = None,
    tokens: Sequence[Tokens] | None = None,
    codes: Codes = "mean",
    seed: int = 0,
    text: TextEmbeddings | None = None,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    preprocess: Callable[[Any], Tensor] | None = None,
    data: ActivationData | None = None,
    batch_size: int = 64,
    same_weights: bool = True,
    progress: bool = False,
) -> ReplacementEvaluation:
    """Classify images with and without a proxy in the place of MLPs.

    Parameters
    ----------
    backbone
        CLIP network.
    clt
        Transcoder for this network.
    images, labels, preprocess
        Held-out images and their classes, see
        :func:`~probinterp.vision.image_source.image_source`.
    class_names, templates, tokenizer, text
        See :func:`~probinterp.vision.zero_shot`; texts are embedded once.
    windows
        Layers to replace together, such as ``[range(3, 12)]``; default: from each layer to the
        last.
    tokens
        Kinds of tokens to replace; default: ``"cls"``, ``"patch"`` and ``"all"``, as far as the
        tower has them.
    codes, seed, same_weights
        See :func:`~probinterp.vision.replace_mlps`.
    data
        Activations of the same images, if they were recorded; otherwise the tower runs again.
    batch_size
        Images in one pass.
    progress
        Show images done and the time left.

    Returns
    -------
    ReplacementEvaluation
        By image: every comparison of the numbers in it is paired.

    Raises
    ------
    ValueError
        If no image has a label.
    """
    tower = resolve(backbone)
    text = text or text_embeddings(tower, class_names, templates, tokenizer=tokenizer)
    classify = partial(
        zero_shot,
        tower,
        images,
        class_names,
        templates,
        labels=labels,
        preprocess=preprocess,
        text=text,
        batch_size=batch_size,
        progress=progress,
    )
    require_proxy(tower, clt, same_weights=same_weights)  # hashes take a while: once for all
    network = classify()
    if network.labels is None:
        raise ValueError("the images need labels, because correctness is counted.")
    found = []
    for layers in windows_of(tower, windows):
        for kind in tokens or _kinds(tower):
            cascade = cascade_of(tower, clt, layers=layers, tokens=kind, codes=codes, seed=seed)
            with cascading(cascade):
                result = classify()
            drift = logit_drift(network.logits, result.logits)
            visible = reaches_embedding(tower, layers, kind)
            found.append(WindowResult(layers, kind, visible, result, drift))
    if data is None:
        data = stream_activations(tower, images, preprocess=preprocess, batch_size=batch_size)
    return ReplacementEvaluation(network, tuple(found), reconstruction_by_type(clt, data))


def windows_of(
    tower: Tower, windows: Iterable[Sequence[int]] | None = None
) -> list[tuple[int, ...]]:
    """Windows as layer numbers; by default from each layer to the last one."""
    last = tower.n_layers
    chosen = [range(first, last) for first in range(last)] if windows is None else windows
    return [tower.layer_indices(tuple(layers)) for layers in chosen]


def reconstruction_by_type(clt: Any, data: ActivationData) -> dict[str, ReconstructionStatistics]:
    """Reconstruction of class token and patches apart, as far as there are any."""
    present = data.token_type.unique().tolist()
    names = [name for name in ("cls", "patch") if TOKEN_TYPES[name] in present]
    return {name: reconstruction_statistics(clt, data.of_type(name)) for name in names}


def _kinds(tower: Tower) -> tuple[Tokens, ...]:
    return ("cls", "patch", "all") if tower.n_class_tokens else ("patch",)
