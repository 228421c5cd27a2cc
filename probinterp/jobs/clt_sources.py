"""What the jobs of transcoders read: networks, images, recordings, saved transcoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from probinterp.inference import load
from probinterp.jobs.clt_evaluation import Task, classification
from probinterp.models import CrossLayerTranscoder
from probinterp.vision import ActivationData, digits, load_clip, open_activations, tiny_clip
from probinterp.vision.image_source import NO_LABEL, FolderImages, image_source
from probinterp.vision.tiny_clip import CLASS_NAMES, TEMPLATES

TINY, DIGITS = "tiny-clip", "digits"
SOURCE = "source.json"
PROMPT = ("a photo of a {}",)
BASELINES = ("ridge", "mean", "identity")


class Pictures:
    """Pixels of images by number."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitem__(self, number: int) -> Any:
        return self.source[number][0]


def backbone_of(name: str, pretrained: str | None) -> nn.Module:
    """The network of a name and its weights."""
    if name == TINY:
        return tiny_clip().model
    return load_clip(name, pretrained).model


def named(source: dict[str, Any]) -> tuple[str, str | None]:
    """Name and weights of the network of a recording."""
    return source["backbone"], source["pretrained"]


def image_arguments(
    images: str, part: str, backbone: str, pretrained: str | None
) -> dict[str, Any]:
    """Arguments ``images``, ``labels`` and ``preprocess`` of whatever reads images."""
    if images == DIGITS:
        parts = digits()._asdict()
        if part not in parts:
            raise ValueError(f"part must be one of {', '.join(parts)}, got {part!r}.")
        return {"images": parts[part].images, "labels": parts[part].labels}
    if part != "train":
        raise ValueError(f"part is for the digits alone, got {part!r} for the folder {images}.")
    if not Path(images).is_dir():
        raise FileNotFoundError(f"{images} is neither a folder of pictures nor 'digits'.")
    preprocess = tiny_clip().preprocess if backbone == TINY else None
    return {
        "images": images,
        "preprocess": preprocess or load_clip(backbone, pretrained).preprocess,
    }


def open_recording(folder: str | Path) -> tuple[ActivationData, dict[str, Any]]:
    """A recording and the record of where it comes from."""
    path = Path(folder) / SOURCE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no recording of `probinterp clt record`.")
    source = json.loads(path.read_text())
    return open_activations(folder, backbone_of(*named(source))), source


def open_transcoder(folder: str | Path) -> CrossLayerTranscoder:
    """A saved transcoder, in evaluation mode."""
    model = load(folder)
    if not isinstance(model, CrossLayerTranscoder):
        raise TypeError(f"{folder} holds a {type(model).__name__}, not a CrossLayerTranscoder.")
    return model.eval()


def require_fitting(
    clt: CrossLayerTranscoder,
    model: str | Path,
    data: ActivationData,
    recording: str | Path,
    source: dict[str, Any],
) -> None:
    """The recording must be of other images than the fit, and of the tokens of the transcoder."""
    if clt.metadata.get("source") == source:
        raise ValueError(
            f"{model} was fitted to the images of {recording}; a verdict needs images that it has "
            "not seen."
        )
    fitted, there = clt.metadata.get("tokens", "all"), data.manifest["tokens"]
    if fitted != there:
        raise ValueError(
            f"{model} was fitted to {fitted} tokens, {recording} has {there} tokens: record with "
            f"--tokens {fitted}."
        )


def proxy_names(folders: Sequence[str | Path]) -> list[str]:
    """Names of transcoders: the folder above the model, or more of the path where two are alike."""
    paths = [Path(folder).resolve().parent for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"a transcoder is named twice: {', '.join(map(str, folders))}.")
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*names, *BASELINES}) == len(names) + len(BASELINES):
            return names
    raise AssertionError("different paths have different names")


def task_of(data: ActivationData, source: dict[str, Any], templates: Sequence[str]) -> Task:
    """The classification of the recorded images, with the classes of their folders."""
    if data.labels is None or (data.labels == NO_LABEL).any():
        raise ValueError("the recorded images need classes: put them in one subfolder a class.")
    assert data.tower is not None
    images = image_source(**image_arguments(source["images"], source["part"], *named(source)))
    if isinstance(images, FolderImages):
        names: Sequence[str] = [name.replace("_", " ") for name in images.classes]
        prompts = tuple(templates) or PROMPT
    else:
        names, prompts = CLASS_NAMES, tuple(templates) or TEMPLATES
    return classification(data.tower, images, data.labels, names, prompts, data)
