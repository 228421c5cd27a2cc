"""Zero-shot classification by CLIP, with what is needed to repeat and to compare it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from probinterp.vision.activation_sources import to_tower
from probinterp.vision.capture import evaluating
from probinterp.vision.class_logits import class_logits
from probinterp.vision.hashes import ImageHash, json_hash, preprocessing_hash
from probinterp.vision.image_source import NO_LABEL, image_batches, image_source
from probinterp.vision.towers import Tower, resolve


class TextEmbeddings(NamedTuple):
    """Directions of the classes in the space that images and texts share.

    Attributes
    ----------
    embeddings
        One unit vector for each class, (C, E).
    class_names
        Names of the classes, C.
    template_hash, class_hash
        SHA-256 of the templates and of the class names, as JSON lists.
    """

    embeddings: Tensor
    class_names: tuple[str, ...]
    template_hash: str
    class_hash: str


class ZeroShotResult(NamedTuple):
    """What a network says of each image.

    Attributes
    ----------
    predictions
        Class of the largest logit, (N,) int64; of equal ones the first.
    logits
        Scaled cosines of image and class, (N, C), float32.
    margins
        Largest minus second largest logit, (N,).
    labels
        True classes, (N,) int64, -1 where unknown; None where no image has one.
    class_names
        Names of the classes, C.
    template_hash, class_hash, preprocess_hash, image_hash
        SHA-256 of what went in; results with other hashes are not comparable. The second last
        is that of the settings kept with the tower, the last that of the preprocessed pixels.
    """

    predictions: Tensor
    logits: Tensor
    margins: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    template_hash: str
    class_hash: str
    preprocess_hash: str | None
    image_hash: str

    @property
    def correct(self) -> Tensor | None:
        """Whether each labelled image was recognised, boolean; None without labels."""
        if self.labels is None:
            return None
        known = self.labels != NO_LABEL
        return self.predictions[known] == self.labels[known]

    @property
    def accuracy(self) -> float:
        """Share of labelled images that were recognised."""
        if self.correct is None:
            raise ValueError("the images have no labels, so there is no accuracy.")
        return self.correct.double().mean().item()


def text_embeddings(
    backbone: nn.Module | Tower,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
) -> TextEmbeddings:
    r"""Mean of the unit embeddings of a class's prompts, scaled to unit length again.

    .. math:: w_c \propto \frac1M \sum_m \frac{t_{cm}}{\lVert t_{cm}\rVert}

    Parameters
    ----------
    backbone
        CLIP network with a text tower.
    class_names
        Names of the classes, C, all different.
    templates
        Prompts with ``{}`` where the name goes, M.
    tokenizer
        Texts to token numbers; default: the one that :func:`load_clip` found.

    Raises
    ------
    ValueError
        If names are equal, a template has no place for the name, or no tokenizer is known.
    """
    network = _network(backbone)
    _check_texts(class_names, templates)
    tokenizer = tokenizer or getattr(network, "probinterp_tokenizer", None)
    if tokenizer is None:
        raise ValueError("give tokenizer=, or make the network with load_clip.")
    device = next(network.parameters()).device
    embeddings = []
    with evaluating(network):
        for name in class_names:
            tokens = tokenizer([template.format(name) for template in templates]).to(device)
            embedded = normalize(network.encode_text(tokens).float(), dim=-1)
            embeddings.append(normalize(embedded.mean(0), dim=-1))
    hashes = json_hash(list(templates)), json_hash(list(class_names))
    return TextEmbeddings(torch.stack(embeddings), tuple(class_names), *hashes)


def zero_shot(
    backbone: nn.Module | Tower,
    images: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    labels: Tensor | Sequence[int] | None = None,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
    preprocess: Callable[[Any], Tensor] | None = None,
    text: TextEmbeddings | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> ZeroShotResult:
    """Give each image the class whose text embedding has the largest cosine with it.

    Parameters
    ----------
    backbone
        CLIP network; a proxy may stand in the place of its MLPs.
    images
        Array, folder or data set, see :func:`~probinterp.vision.image_source.image_source`; or
        an iterable of batches ``images`` or ``(images, labels)``, such as a loader that does not
        shuffle.
    class_names, templates, tokenizer
        See :func:`text_embeddings`.
    labels
        Class of each image, (N,); default: those that come with the images.
    preprocess
        Picture to tensor, where ``images`` are pictures.
    text
        What :func:`text_embeddings` returned for the same names and templates, so that texts
        are embedded once.
    batch_size, num_workers
        Images in one pass, and processes that read them ahead; not used for an iterable.
    progress
        Show images done and the time left.

    Returns
    -------
    ZeroShotResult
        Per image, in the order of the images.

    Raises
    ------
    ValueError
        If there are no images, or labels that are no number of a class.
    """
    tower, network = resolve(backbone), _network(backbone)
    if text is None:
        text = text_embeddings(network, class_names, templates, tokenizer=tokenizer)
    _check_same_texts(text, class_names, templates)
    batches = _batches(tower, images, labels, preprocess, batch_size, num_workers)
    logits, truth, pixels_hash = [], [], ImageHash()
    with evaluating(network):
        for pixels, known in tqdm(batches, unit="batch", disable=not progress):
            features = tower.encode_image(to_tower(tower, pixels))
            logits.append(class_logits(network, features, text.embeddings).cpu())
            truth.append(known)
            pixels_hash.add(pixels)
    if not logits:
        raise ValueError("there are no images.")
    scores, true = torch.cat(logits), torch.cat(truth)
    if ((true < NO_LABEL) | (true >= scores.shape[1])).any():
        raise ValueError(
            f"labels must be {NO_LABEL} (none) to {scores.shape[1] - 1} for {scores.shape[1]} "
            f"class names, got {int(true.min())} to {int(true.max())}."
        )
    return ZeroShotResult(
        predictions=scores.argmax(1),  # of equal entries the first
        logits=scores,
        margins=_margins(scores),
        labels=None if (true == NO_LABEL).all() else true,
        class_names=text.class_names,
        template_hash=text.template_hash,
        class_hash=text.class_hash,
        preprocess_hash=preprocessing_hash(tower.visual),
        image_hash=pixels_hash.hexdigest(),
    )


class SelfDiscordance(NamedTuple):
    """Difference of a network from itself, the floor for any comparison with a proxy.

    Attributes
    ----------
    share
        Share of images whose prediction changes.
    largest_drift
        Largest change of a logit.
    """

    share: float
    largest_drift: float


def self_discordance(
    backbone: nn.Module | Tower,
    images: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_sizes: tuple[int, int] = (64, 23),
    **options: Any,
) -> SelfDiscordance:
    """Classify the same images in two batch sizes and count predictions that differ.

    Other batch sizes add numbers in another order; in 16-bit precision that alone moves images
    across the border between two classes.

    Parameters
    ----------
    backbone, images, class_names, templates, **options
        As for :func:`zero_shot`.
    batch_sizes
        The two batch sizes.

    Raises
    ------
    ValueError
        If ``images`` come in batches already.
    """
    if not _by_number(images):
        raise ValueError("images must be readable by number, so that their batches can differ.")
    first, second = (
        zero_shot(backbone, images, class_names, templates, batch_size=size, **options)
        for size in batch_sizes
    )
    changed = first.predictions != second.predictions
    drift = (first.logits - second.logits).abs().max()
    return SelfDiscordance(changed.double().mean().item(), drift.item())


def _network(backbone: nn.Module | Tower) -> Any:
    network = backbone.backbone if isinstance(backbone, Tower) else backbone
    if not hasattr(network, "encode_text"):
        raise TypeError(
            f"{type(network).__name__} has no text tower; zero-shot classification needs a whole "
            "CLIP network."
        )
    return network


def _margins(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return torch.full((len(logits),), torch.inf)
    largest = logits.topk(2, dim=1).values
    return largest[:, 0] - largest[:, 1]


def _batches(
    tower: Tower,
    images: Any,
    labels: Tensor | Sequence[int] | None,
    preprocess: Callable[[Any], Tensor] | None,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[Tensor, Tensor]] | Iterable[tuple[Tensor, Tensor]]:
    if _by_number(images):
        source = image_source(images, preprocess=preprocess, labels=labels)
        size = tower.image_size
        everything = range(len(source))
        return image_batches(
            source, everything, batch_size, image_size=size, num_workers=num_workers
        )
    if labels is not None:
        raise ValueError("labels must come with the batches of an iterable.")
    return (_pair(batch) for batch in images)


def _by_number(images: Any) -> bool:
    return isinstance(images, str | Path) or hasattr(images, "__getitem__")


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Tensor):
        return batch, torch.full((len(batch),), NO_LABEL)
    pixels, labels = batch[:2]
    return pixels, torch.as_tensor(labels, dtype=torch.int64)


def _check_texts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    for name, texts in (("class_names", class_names), ("templates", templates)):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"{name} must be a list of texts, got {texts!r}.")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names must be different, got {list(class_names)}.")
    without = [template for template in templates if "{}" not in template]
    if without:
        raise ValueError(f"templates need {{}} where the class name goes, missing in {without}.")


def _check_same_texts(
    text: TextEmbeddings, class_names: Sequence[str], templates: Sequence[str]
) -> None:
    hashes = json_hash(list(templates)), json_hash(list(class_names))
    if hashes != (text.template_hash, text.class_hash):
        raise ValueError("text was made from other class names or templates than those given.")
