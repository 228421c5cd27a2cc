"""CLIP networks made by open_clip, with what must be known of their weights."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probinterp.inference.storage import write_atomically
from probinterp.vision.extra import open_clip_module
from probinterp.vision.tokenizer import ReducedTokenizer

_METADATA = "clip"


class LoadedClip(NamedTuple):
    """A CLIP network and its two readers.

    Attributes
    ----------
    model
        The network, in evaluation mode.
    tokenizer
        Texts to token numbers (texts, context length).
    preprocess
        A PIL picture to a tensor (3, H, W).
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    preprocess: Callable[[Any], Tensor]


def load_clip(
    name: str,
    pretrained: str | Path | None = None,
    *,
    quick_gelu: bool | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    **options: Any,
) -> LoadedClip:
    """Make a CLIP network with ``open_clip.create_model`` and remember where it comes from.

    Parameters
    ----------
    name
        Architecture, such as ``"ViT-B-32"``, or ``"hf-hub:..."`` or ``"local-dir:..."``.
    pretrained
        Tag of published weights, such as ``"openai"``, path of a weight file, or None for random
        weights.
    quick_gelu
        Whether the weights were trained with QuickGELU. Published tags and files written by
        :func:`save_clip` know; for any other file it must be given, because the wrong choice
        runs without a word and moves every MLP output by a per cent or so.
    precision, device, **options
        Passed on to ``open_clip.create_model``.

    Raises
    ------
    ValueError
        If open_clip knows no such architecture or weights, or ``quick_gelu`` is not known or
        contradicts what the weights say.
    """
    open_clip = open_clip_module()
    _require_known(open_clip, name, pretrained)
    path = Path(pretrained) if pretrained is not None and Path(pretrained).is_file() else None
    written = {} if path is None else _written(path)
    settings = _activation_settings(open_clip, name, pretrained, path, written, quick_gelu)
    if "preprocess" in written:
        options.setdefault("force_preprocess_cfg", written["preprocess"])
    model = open_clip.create_model(
        name,
        pretrained=None if pretrained is None else str(pretrained),
        precision=precision,
        device=device,
        **settings,
        **options,
    )
    origin = {
        "name": name,
        "pretrained": path.name if path else pretrained,
        "pretrained_sha256": None if path is None else _file_hash(path),
    }
    if "token_ids" in written:
        tokenizer: Any = ReducedTokenizer(written["token_ids"], model.context_length)
    else:
        tokenizer = open_clip.get_tokenizer(name)
    model.probinterp_origin, model.probinterp_tokenizer = origin, tokenizer
    return LoadedClip(model.eval(), tokenizer, picture_transform(model))


def picture_transform(model: Any) -> Callable[[Any], Tensor]:
    """What turns a PIL picture into the tensor (3, H, W) that ``model`` expects."""
    transform = open_clip_module().transform
    settings = transform.PreprocessCfg(**model.visual.preprocess_cfg)
    return transform.image_transform_v2(settings, is_train=False)


def save_clip(
    model: nn.Module,
    path: str | Path,
    *,
    quick_gelu: bool,
    preprocess: Mapping[str, Any] | None = None,
    token_ids: list[int] | None = None,
) -> None:
    """Write the weights of a CLIP network for ``create_model(name, pretrained=path)``.

    Parameters
    ----------
    model
        The network.
    path
        File to write, ``*.safetensors``.
    quick_gelu
        Whether it uses QuickGELU; kept in the file for :func:`load_clip`.
    preprocess
        Settings of the picture transform that differ from open_clip's: ``mean``, ``std``, ...
    token_ids
        Numbers of CLIP's tokens that the text tower knows, if not all.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}.")
    written = {"quick_gelu": quick_gelu, "preprocess": preprocess, "token_ids": token_ids}
    known = {key: value for key, value in written.items() if value is not None}
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    metadata = {_METADATA: json.dumps(known)}
    write_atomically(Path(path), lambda temporary: save_file(weights, temporary, metadata))


def _require_known(open_clip: Any, name: str, pretrained: str | Path | None) -> None:
    """A name and a tag of open_clip, or what the closest ones are."""
    if ":" in name:  # hf-hub:, local-dir:
        return
    names = open_clip.list_models()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
        raise ValueError(
            f"open_clip knows no network {name!r}; close ones: {', '.join(close) or 'none'}; all: "
            "open_clip.list_models()."
        )
    if pretrained is None or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if str(pretrained) not in tags:
        raise ValueError(
            f"{pretrained} is neither a file nor a tag of weights of {name}: "
            f"{', '.join(tags) or 'there are none'}."
        )


def _activation_settings(
    open_clip: Any,
    name: str,
    pretrained: str | Path | None,
    path: Path | None,
    written: Mapping[str, Any],
    asked: bool | None,
) -> dict[str, Any]:
    """Arguments of ``create_model`` that give the activation that the weights need."""
    schema = name.startswith(("hf-hub:", "local-dir:"))
    config = {} if schema else (open_clip.get_model_config(name.replace("/", "-")) or {})
    configured = bool(config.get("quick_gelu", False))
    known: bool | None = written.get("quick_gelu")
    if path is None and pretrained is not None and not schema:
        tag = open_clip.pretrained.get_pretrained_cfg(name.replace("/", "-"), str(pretrained))
        known = bool(tag.get("quick_gelu", False)) if tag else None
    if asked is not None and known is not None and asked != known:
        raise ValueError(f"quick_gelu is {asked}, but {pretrained} was trained with {known}.")
    wanted = known if asked is None else asked
    if wanted is None and path is not None and not configured:
        raise ValueError(
            f"{path.name} does not say whether it was trained with QuickGELU: give "
            "quick_gelu=True (weights of OpenAI and MetaCLIP) or quick_gelu=False."
        )
    if wanted is None or wanted == configured:
        return {}
    return {"force_quick_gelu": True} if wanted else {"quick_gelu": False}


def _written(path: Path) -> dict[str, Any]:
    """What :func:`save_clip` left in a file beside the weights."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get(_METADATA, "{}"))


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
