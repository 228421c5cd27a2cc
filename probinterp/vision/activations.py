"""Record what the MLPs of a CLIP vision tower read and write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from probinterp.vision.activation_data import ActivationData
from probinterp.vision.activation_shards import (
    MANIFEST,
    Arrays,
    ShardFolder,
    dtype_name,
    open_shards,
    read_manifest,
)
from probinterp.vision.activation_sources import ArraySource, TowerSource
from probinterp.vision.image_source import NO_LABEL, image_source
from probinterp.vision.recording import FORMAT, Recording, chosen_tokens, make_plan
from probinterp.vision.towers import Tower, resolve


def record_activations(
    backbone: nn.Module | Tower,
    images: Any,
    *,
    layers: Sequence[int] | None = None,
    tokens: str | Sequence[str] = "all",
    store: str = "inputs",
    path: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
    labels: Tensor | Sequence[int] | None = None,
    preprocess: Callable[[Any], Tensor] | None = None,
    shard_images: int | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> ActivationData:
    """Run the vision tower on images and keep the inputs, and maybe the outputs, of its MLPs.

    Parameters
    ----------
    backbone
        Network of open_clip, or a vision tower that :func:`resolve` understands. Its hooks are
        checked on the first images; it is left as it was.
    images
        Preprocessed array (N, 3, H, W), folder of pictures, or data set; see
        :func:`~probinterp.vision.image_source.image_source`.
    layers
        Blocks to record, ascending; default: all.
    tokens
        ``"all"`` for class token and patches, ``"cls"``, ``"patch"``, ``"register"``, or several
        of the last three.
    store
        ``"inputs"``: outputs are made again by the MLPs when they are asked for, in half the
        space. ``"both"``: outputs are kept too, rounded to ``dtype`` apart from their inputs.
    path
        Folder for memory-mapped shards; an interrupted recording goes on where it stopped. None
        keeps everything in memory.
    dtype
        Type of the store: ``torch.float32``, ``float16``, ``bfloat16`` or ``int8`` with a scale
        for each token.
    batch_size
        Images in one pass of the tower; another size may finish an interrupted recording.
    labels, preprocess
        Classes of the images and picture transform, where ``images`` do not bring them.
    shard_images
        Images in one file; default: about 256 MB.
    num_workers
        Processes that read and preprocess images ahead.
    progress
        Show images done and the time left.

    Returns
    -------
    ActivationData
        Tokens as observations.

    Raises
    ------
    UnsupportedTowerError
        If the tower has no known hook points or they fail the check.
    ManifestMismatchError
        If ``path`` holds another recording.
    """
    tower = resolve(backbone)
    source = image_source(images, preprocess=preprocess, labels=labels)
    task = Recording(tower, source, tower.layer_indices(layers), batch_size, num_workers)
    token_index = chosen_tokens(tower, tokens)
    plan = make_plan(task, tokens, token_index, store, dtype_name(dtype), shard_images)
    with tqdm(total=len(source), unit="image", desc="recording", disable=not progress) as bar:
        if path is None:
            arrays = task.in_memory(plan, token_index, bar)
            plan["images_sha256"] = task.hash.hexdigest()
            stored = ArraySource([arrays], plan["dtype"], by_image=False)
            return ActivationData(stored, plan, tower, _labels([arrays]))
        task.to_folder(ShardFolder(Path(path), plan), token_index, bar)
    return open_activations(path, tower)


def open_activations(path: str | Path, backbone: nn.Module | Tower | None = None) -> ActivationData:
    """Open a complete recording; nothing is read before it is asked for.

    Parameters
    ----------
    path
        Folder that :func:`record_activations` wrote.
    backbone
        The network that was recorded. Without it outputs are only there if they were stored.

    Raises
    ------
    FileNotFoundError
        If there is no complete recording.
    TowerMismatchError
        If hooks, weights or preprocessing of ``backbone`` are not those that were recorded.
    ValueError
        If a file is damaged.
    """
    manifest = read_manifest(Path(path))
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{Path(path) / MANIFEST} has format {manifest.get('format')}, this version reads "
            f"{FORMAT}."
        )
    tower = None if backbone is None else resolve(backbone)
    if tower is not None:
        tower.require(manifest["backbone"])
    shards = open_shards(Path(path), manifest)
    stored = ArraySource(shards, manifest["dtype"], by_image=True)
    return ActivationData(stored, manifest, tower, _labels(shards))


def stream_activations(
    backbone: nn.Module | Tower,
    images: Any,
    *,
    layers: Sequence[int] | None = None,
    tokens: str | Sequence[str] = "all",
    batch_size: int = 64,
    kept_images: int = 64,
    labels: Tensor | Sequence[int] | None = None,
    preprocess: Callable[[Any], Tensor] | None = None,
) -> ActivationData:
    """Activations that are never stored: the tower runs whenever a batch is asked for.

    Parameters
    ----------
    backbone, images, layers, tokens, batch_size, preprocess
        As for :func:`record_activations`.
    kept_images
        Images whose activations stay in memory for the next minibatch.
    labels
        Classes of the images, (N,); those that a data set brings are not looked up beforehand.
    """
    tower = resolve(backbone)
    source = image_source(images, preprocess=preprocess, labels=labels)
    task = Recording(tower, source, tower.layer_indices(layers), batch_size, 0)
    token_index = chosen_tokens(tower, tokens)
    plan = make_plan(task, tokens, token_index, "both", "float32", None) | {"store": "none"}
    task.verify()
    stream = TowerSource(
        tower, source, task.layers, token_index, batch_size=batch_size, kept_images=kept_images
    )
    given = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    return ActivationData(stream, plan, tower, given)


def _labels(shards: Sequence[Arrays]) -> Tensor | None:
    labels = torch.cat([torch.tensor(shard["labels"]) for shard in shards])
    return None if (labels == NO_LABEL).all() else labels
