"""Which images activate a feature most, and where in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.vision.activation_data import ActivationData
from probinterp.vision.towers import CLASS, PATCH

NO_IMAGE = -1


class TopImages(NamedTuple):
    r"""Images with the strongest activations of each feature.

    Attributes
    ----------
    score
        Largest :math:`z_i \lVert W_{dec,i} \rVert` over the tokens of an image, (l, H, m) for l
        layers, in descending order; 0 where a feature is active in fewer than m images.
    image
        Numbers of these images in the recording, (l, H, m) int64, -1 where there is none.
    firing_rate
        Share of tokens in which a feature is active, (l, H).
    n_images
        Images in which a feature is active, (l, H) int64.
    layers
        The layers, l.
    """

    score: Tensor
    image: Tensor
    firing_rate: Tensor
    n_images: Tensor
    layers: tuple[int, ...]


class FeatureCard(NamedTuple):
    """One feature and its strongest images, ready to be drawn.

    Attributes
    ----------
    layer, feature
        Which.
    images
        Numbers of the images in the recording, (n,) int64.
    scores
        Largest activation in each, times the norm of the decoders, (n,).
    heat_maps
        Activations of the patches on their grid, times that norm, (n, rows, columns).
    class_token
        Activation of the class token, times that norm, (n,); None without one.
    labels
        Classes of the images, (n,), -1 where unknown; None without labels.
    firing_rate
        Share of tokens in which the feature is active.
    target_norms
        Norm of the feature's decoder for each layer, (L,), 0 for layers below it: where it writes.
    """

    layer: int
    feature: int
    images: Tensor
    scores: Tensor
    heat_maps: Tensor
    class_token: Tensor | None
    labels: Tensor | None
    firing_rate: float
    target_norms: Tensor


class StrongFeatures(NamedTuple):
    """Features of one layer that are strongest in an image.

    Attributes
    ----------
    layer
        The layer.
    features
        Numbers of the features, (n,) int64, strongest first; only active ones.
    scores
        Largest activation over the tokens, times the norm of the decoders, (n,).
    """

    layer: int
    features: Tensor
    scores: Tensor


@torch.no_grad()
def top_images(
    clt: Any,
    data: ActivationData,
    *,
    n: int = 9,
    layers: Sequence[int] | None = None,
    batch_size: int = 16,
) -> TopImages:
    r"""For each feature the images with the largest token-maximum of its activation.

    .. math:: \max_t |z^l_{ti}| \lVert W^l_{dec,i} \rVert

    with :math:`W^l_{dec,i}` all decoders of the feature together and z the sparse codes, where
    codes are uncertain those that stand for the posterior. Class token and patches count.

    Parameters
    ----------
    clt
        Transcoder.
    data
        Recorded activations of all layers.
    n
        Images to keep for each feature, m.
    layers
        Layers, default: all.
    batch_size
        Images in memory at once.

    Returns
    -------
    TopImages
        On the CPU. Memory is that of m numbers for each feature, whatever the number of images;
        of equal scores the earlier image comes first.

    Raises
    ------
    ValueError
        If no image is asked for, or a layer does not exist.
    """
    chosen = _layers(clt, layers)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    norm = clt.decoder_norm
    best = [_Best(norm[layer], n) for layer in chosen]
    for images, types, inputs in _whole_images(clt, data, batch_size):
        kept = (types == CLASS) | (types == PATCH)
        for layer, running in zip(chosen, best, strict=True):
            z = _codes(clt, inputs[:, kept, layer].flatten(0, 1), layer)
            running.add(images, z.unflatten(0, (len(images), -1)))
    return TopImages(
        score=torch.stack([running.score.mT.cpu() for running in best]),
        image=torch.stack([running.image.mT.cpu() for running in best]),
        firing_rate=torch.stack([running.n_fired.cpu() / running.n_tokens for running in best]),
        n_images=torch.stack([running.n_images.cpu() for running in best]),
        layers=chosen,
    )


class _Best:
    """The best images so far of every feature of a layer."""

    def __init__(self, norm: Tensor, n: int) -> None:
        shape, device = (n, len(norm)), norm.device
        self.norm = norm
        self.score = torch.zeros(shape, dtype=norm.dtype, device=device)
        self.image = torch.full(shape, NO_IMAGE, device=device)
        self.n_fired = torch.zeros(len(norm), dtype=torch.float64, device=device)
        self.n_images = torch.zeros(len(norm), dtype=torch.int64, device=device)
        self.n_tokens = 0

    def add(self, images: Tensor, z: Tensor) -> None:
        """Codes (B, T, H) of images (B,)."""
        score = z.abs().amax(1) * self.norm
        active = score > 0
        image = images.to(z.device).unsqueeze(1).expand(-1, z.shape[2])
        candidates = torch.cat([self.score, score.where(active, 0)])
        named = torch.cat([self.image, image.where(active, NO_IMAGE)])
        order = candidates.argsort(dim=0, descending=True, stable=True)[: len(self.score)]
        self.score, self.image = candidates.gather(0, order), named.gather(0, order)
        self.n_fired += (z != 0).sum((0, 1))
        self.n_images += active.sum(0)
        self.n_tokens += z.shape[0] * z.shape[1]


@torch.no_grad()
def feature_card(
    clt: Any, data: ActivationData, top: TopImages, layer: int, feature: int
) -> FeatureCard:
    """One feature with heat maps of its strongest images.

    Parameters
    ----------
    clt
        Transcoder.
    data
        The activations that ``top`` was made from, patches included.
    top
        Result of :func:`top_images`.
    layer, feature
        Which feature.

    Raises
    ------
    ValueError
        If the patches of an image are not all there, or the feature does not exist.
    """
    if layer not in top.layers or not 0 <= feature < top.score.shape[1]:
        raise ValueError(
            f"feature {feature} of layer {layer} was not looked at; layers {list(top.layers)} with "
            f"{top.score.shape[1]} features were."
        )
    place = top.layers.index(layer)
    image = top.image[place, feature]
    image = image[image != NO_IMAGE]
    norm, shown = clt.decoder_norm[layer, feature], _places(data, image)
    maps, class_token = _maps(clt, data, shown, layer, feature)
    targets = clt.decoder_norm.new_zeros(clt.n_layers)
    for target in range(layer, clt.n_layers if clt.cross_layer else layer + 1):
        targets[target] = clt.decoder(layer, target)[feature].norm()
    return FeatureCard(
        layer=layer,
        feature=feature,
        images=image,
        scores=top.score[place, feature, : len(image)],
        heat_maps=(maps * norm).cpu(),
        class_token=None if class_token is None else (class_token * norm).cpu(),
        labels=None if data.labels is None else data.labels[shown],
        firing_rate=top.firing_rate[place, feature].item(),
        target_norms=targets.cpu(),
    )


@torch.no_grad()
def strongest_features(
    clt: Any,
    data: ActivationData,
    image: int,
    *,
    n: int = 5,
    layers: Sequence[int] | None = None,
) -> list[StrongFeatures]:
    """Features that are most active in one image, by layer.

    Parameters
    ----------
    clt
        Transcoder.
    data
        Recorded activations of all layers.
    image
        Number of the image in the recording.
    n
        Features for each layer, at most.
    layers
        Layers, default: all.
    """
    found = []
    ((_, types, inputs),) = _whole_images(clt, data.images(_places(data, [image])), 1)
    kept = (types == CLASS) | (types == PATCH)
    for layer in _layers(clt, layers):
        z = _codes(clt, inputs[0, kept, layer], layer)
        score = z.amax(0) * clt.decoder_norm[layer]
        order = score.argsort(descending=True, stable=True)[:n]
        order = order[score[order] > 0]
        found.append(StrongFeatures(layer, order.cpu(), score[order].cpu()))
    return found


def _whole_images(
    clt: Any, data: ActivationData, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Image numbers (B,), types of their tokens (T,) and inputs (B, T, L, D)."""
    if data.layers != tuple(range(clt.n_layers)):
        raise ValueError(f"data of layers 0..{clt.n_layers - 1} expected, got {list(data.layers)}.")
    weight = clt.decoder_norm
    for start in range(0, data.n_images, batch_size):
        part = data.images(slice(start, start + batch_size))
        batch = part.batch()
        inputs = batch.inputs.to(weight.device, weight.dtype)
        types = part.token_type[: part.n_tokens]
        yield part.image_index, types, inputs.unflatten(0, (part.n_images, part.n_tokens))


def _codes(clt: Any, inputs: Tensor, layer: int) -> Tensor:
    """Sparse codes (N, H) of a layer's inputs (N, D): posterior means are hardly ever zero."""
    return clt.posterior_codes_of(inputs, layer).hard()


def _maps(
    clt: Any, data: ActivationData, shown: Tensor, layer: int, feature: int
) -> tuple[Tensor, Tensor | None]:
    """Activations of one feature: of the patches (n, rows, columns), of the class token (n,)."""
    rows, columns = data.manifest["backbone"]["grid"]
    types = data.token_type[: data.n_tokens]
    if int((types == PATCH).sum()) != rows * columns:
        raise ValueError(
            f"heat maps need all {rows * columns} patches of an image, "
            f"{int((types == PATCH).sum())} were recorded."
        )
    codes = [
        _codes(clt, inputs[:, :, layer].flatten(0, 1), layer)[:, feature]
        for _, _, inputs in _whole_images(clt, data.images(shown), 1)
    ]
    z = torch.stack(codes) if codes else clt.decoder_norm.new_zeros(0, data.n_tokens)
    maps = z[:, types == PATCH].unflatten(1, (rows, columns))
    has_class = bool((types == CLASS).any())
    return maps, z[:, types == CLASS][:, 0] if has_class else None


def _places(data: ActivationData, images: Tensor | Sequence[int]) -> Tensor:
    """Places in ``data`` of images by their number in the recording."""
    place = {number: i for i, number in enumerate(data.image_index.tolist())}
    numbers = torch.as_tensor(images).tolist()
    missing = [number for number in numbers if number not in place]
    if missing:
        raise ValueError(f"images {missing} are not among the {len(place)} of the data.")
    return torch.tensor([place[number] for number in numbers], dtype=torch.int64)


def _layers(clt: Any, layers: Sequence[int] | None) -> tuple[int, ...]:
    chosen = tuple(range(clt.n_layers)) if layers is None else tuple(layers)
    wrong = [layer for layer in chosen if not 0 <= layer < clt.n_layers]
    if wrong:
        raise ValueError(f"layers must lie in 0..{clt.n_layers - 1}, got {wrong}.")
    return chosen
