"""Where a CLIP vision tower keeps its MLPs, and what its tokens are.

The transcoder reads what the second LayerNorm of a block hands to the MLP and writes what the MLP
hands on, before LayerScale and before the residual sum. In every tower that is understood here
both are seen by one forward hook on the module ``block.mlp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probinterp.vision.hashes import preprocessing_hash, weight_hash

CLASS, PATCH, REGISTER = 0, 1, 2
"""Types of tokens: the class token, image patches, registers."""

INPUT_HOOK = "mlp.input"
OUTPUT_HOOK = "mlp.output"
_NORMS = ("ln_2", "norm2")
_ACTIVATIONS = ("gelu", "act")
_WEIGHTS = ("mlp_sha256", "visual_sha256", "dtype")


class UnsupportedTowerError(ValueError):
    """The vision tower has no MLP hook points that are understood, or they failed the check."""


class TowerMismatchError(ValueError):
    """A recording or a proxy belongs to another tower than the one at hand."""


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower whose hook points are known.

    Attributes
    ----------
    backbone
        The whole network, or the vision tower where that is all there is.
    visual
        The vision tower.
    blocks, norms, mlps
        Transformer blocks, their second LayerNorms and their MLPs, L each.
    width
        Channels D of the residual stream.
    n_prefix_tokens
        Tokens before the patches: class token and registers.
    n_class_tokens
        1 with a class token, which is then token 0, else 0.
    grid
        Rows and columns of patches.
    batch_first
        Whether blocks see (images, tokens, width); older releases show (tokens, images, width).
    pooling
        What makes the image embedding: ``"cls"`` (the class token alone), ``"avg"``, ``"max"``,
        ``"avgmax"``, ``"map"`` (attention) or ``"none"``.
    hook_names
        Name of each layer's MLP within ``visual``.
    activation
        Class of the MLP's nonlinearity.
    """

    backbone: nn.Module
    visual: nn.Module
    blocks: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    width: int
    n_prefix_tokens: int
    n_class_tokens: int
    grid: tuple[int, int]
    batch_first: bool
    pooling: str
    hook_names: tuple[str, ...]
    activation: str

    @property
    def n_layers(self) -> int:
        """Number of blocks, L."""
        return len(self.blocks)

    @property
    def n_tokens(self) -> int:
        """Tokens of one image: prefix and patches."""
        return self.n_prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def quick_gelu(self) -> bool:
        """Whether the MLPs use QuickGELU, as those trained by OpenAI do."""
        return self.activation.lower() == "quickgelu"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.visual.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the MLPs' weights, in which they compute."""
        return next(self.mlps[0].parameters()).dtype

    @property
    def image_dtype(self) -> torch.dtype:
        """Type of images: that of the patch embedding; other weights may be kept in float32."""
        convolutions = (part for part in self.visual.modules() if isinstance(part, nn.Conv2d))
        first = next(convolutions, None)
        return self.dtype if first is None else first.weight.dtype

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images in pixels; None where the tower does not say."""
        embed = getattr(getattr(self.visual, "trunk", self.visual), "patch_embed", None)
        size = getattr(embed, "img_size", None)  # timm keeps this one when the size is changed
        size = getattr(self.visual, "image_size", None) if size is None else size
        if size is None:
            return None
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings (images, E) as the network itself computes them, not normalised."""
        encode = getattr(self.backbone, "encode_image", self.visual)
        features = encode(images)
        return features[0] if isinstance(features, tuple) else features

    def to_images_first(self, tokens: Tensor) -> Tensor:
        """What a block sees or makes, as (images, tokens, width)."""
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def from_images_first(self, tokens: Tensor) -> Tensor:
        """(images, tokens, width) as the blocks want it."""
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def token_types(self, n_tokens: int | None = None) -> Tensor:
        """Type of each token of one image, (T,) int64: 0 class token, 1 patch, 2 register."""
        types = torch.full((n_tokens or self.n_tokens,), PATCH, dtype=torch.int64)
        types[: self.n_prefix_tokens] = REGISTER
        types[: self.n_class_tokens] = CLASS
        return types

    def layer_indices(self, layers: Sequence[int] | None = None) -> tuple[int, ...]:
        """Layers in ascending order; None for all.

        Raises
        ------
        ValueError
            If a layer does not exist, comes twice, or none is named.
        """
        chosen = tuple(range(self.n_layers)) if layers is None else tuple(layers)
        if not chosen or list(chosen) != sorted(set(chosen)):
            raise ValueError(f"layers must be different and ascending, got {list(chosen)}.")
        if chosen[0] < 0 or chosen[-1] >= self.n_layers:
            raise ValueError(
                f"layers must lie in 0..{self.n_layers - 1}, the tower has {self.n_layers} "
                f"blocks; got {list(chosen)}."
            )
        return chosen

    def record(self) -> dict[str, Any]:
        """What identifies the tower and its hooks, as plain JSON.

        With ``name``, ``pretrained`` and the hash of the weight file where
        :func:`~probinterp.vision.load_clip` made the network.
        """
        origin = getattr(self.backbone, "probinterp_origin", {})
        return {
            "name": origin.get("name"),
            "pretrained": origin.get("pretrained"),
            "pretrained_sha256": origin.get("pretrained_sha256"),
            "class": type(self.visual).__name__,
            "inputs": INPUT_HOOK,
            "outputs": OUTPUT_HOOK,
            "hook_names": list(self.hook_names),
            "width": self.width,
            "n_prefix_tokens": self.n_prefix_tokens,
            "n_class_tokens": self.n_class_tokens,
            "grid": list(self.grid),
            "pooling": self.pooling,
            "activation": self.activation,
            "quick_gelu": self.quick_gelu,
            "image_size": None if self.image_size is None else list(self.image_size),
            "preprocess_sha256": preprocessing_hash(self.visual),
            "dtype": str(self.dtype).removeprefix("torch."),
            "mlp_sha256": [weight_hash(mlp) for mlp in self.mlps],
            "visual_sha256": weight_hash(self.visual),
        }

    def require(self, record: Mapping[str, Any], *, weights: bool = True) -> None:
        """Refuse a recording or a proxy that was made on another tower.

        Parameters
        ----------
        record
            What :meth:`record` gave when it was made.
        weights
            Whether the weights must be the same too, bit by bit. Without, another precision or
            another training of the same architecture passes.

        Raises
        ------
        TowerMismatchError
            With every entry that differs. ``name`` and ``pretrained`` are only labels, and a
            preprocessing that is not known on one side is not compared.
        """
        here = self.record()
        ignored = {"name", "pretrained", "pretrained_sha256"} | (set() if weights else {*_WEIGHTS})
        if None in (record.get("preprocess_sha256"), here["preprocess_sha256"]):
            ignored.add("preprocess_sha256")
        differences = [
            f"{key} is {_short(here[key])} here, was {_short(record.get(key))}"
            for key in here
            if key not in ignored and record.get(key) != here[key]
        ]
        if differences:
            raise TowerMismatchError(
                "made on another tower than this one: " + "; ".join(differences) + "."
            )


def resolve(backbone: nn.Module | Tower) -> Tower:
    """Find the hook points of a CLIP network or of a vision tower alone.

    Understood are open_clip's ``VisionTransformer``, and transformers of timm (ViT, DINOv2 with
    or without registers, SigLIP, EVA) inside open_clip's ``TimmModel`` or by themselves.

    Raises
    ------
    UnsupportedTowerError
        If the tower is of another kind (ResNet, Swin, Mixer, ...), with what was found.
    """
    if isinstance(backbone, Tower):
        return backbone
    visual = getattr(backbone, "visual", backbone)
    if not isinstance(visual, nn.Module):
        raise TypeError(f"backbone must be an open_clip network, got {type(backbone).__name__}.")
    if hasattr(getattr(visual, "transformer", None), "resblocks"):
        return _open_clip_tower(backbone, visual)
    trunk, path = getattr(visual, "trunk", visual), "trunk." if hasattr(visual, "trunk") else ""
    if isinstance(getattr(trunk, "blocks", None), nn.Sequential | nn.ModuleList):
        return _timm_tower(backbone, visual, trunk, path)
    children = ", ".join(name for name, _ in trunk.named_children()) or "no parts"
    raise UnsupportedTowerError(
        f"{type(visual).__name__} ({type(trunk).__name__} with {children}) has neither "
        "transformer.resblocks nor blocks: only vision transformers have an MLP in each block."
    )


def _open_clip_tower(backbone: nn.Module, visual: Any) -> Tower:
    transformer = visual.transformer
    pooled = {"tok": "cls", "avg": "avg", "none": "none"}
    attention = getattr(visual, "attn_pool", None) is not None
    # releases without the attribute hand (tokens, images, width) to their blocks
    return Tower(
        backbone=backbone,
        visual=visual,
        **_hooks(visual, transformer.resblocks, "transformer.resblocks"),
        n_prefix_tokens=1,
        n_class_tokens=1,
        grid=(int(visual.grid_size[0]), int(visual.grid_size[1])),
        batch_first=bool(getattr(transformer, "batch_first", False)),
        pooling="map" if attention else pooled[getattr(visual, "pool_type", "tok")],
    )


def _timm_tower(backbone: nn.Module, visual: nn.Module, trunk: Any, path: str) -> Tower:
    grid = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
    if not hasattr(trunk, "num_prefix_tokens") or grid is None:
        raise UnsupportedTowerError(
            f"{type(trunk).__name__} has blocks but no num_prefix_tokens or no "
            "patch_embed.grid_size: the types of its tokens are not known."
        )
    if getattr(trunk, "dist_token", None) is not None:
        raise UnsupportedTowerError(
            f"{type(trunk).__name__} has a distillation token, which is neither class token, "
            "patch nor register."
        )
    names = {"token": "cls", "": "none"}
    pooling = getattr(trunk, "global_pool", "")
    pooling = "map" if hasattr(getattr(visual, "head", None), "pool") else pooling
    return Tower(
        backbone=backbone,
        visual=visual,
        **_hooks(visual, trunk.blocks, f"{path}blocks"),
        n_prefix_tokens=int(trunk.num_prefix_tokens),
        n_class_tokens=int(getattr(trunk, "cls_token", None) is not None),
        grid=(int(grid[0]), int(grid[1])),
        batch_first=True,
        pooling=names.get(pooling, pooling),
    )


def _hooks(visual: nn.Module, blocks: nn.Module, path: str) -> dict[str, Any]:
    """Norms, MLPs, width and names, after a check that every block has the expected form."""
    members = tuple(blocks.children())
    norms = tuple(_part(block, _NORMS) for block in members)
    mlps = tuple(_part(block, ("mlp",)) for block in members)
    for i, (block, norm, mlp) in enumerate(zip(members, norms, mlps, strict=True)):
        if norm is None or mlp is None:
            found = ", ".join(name for name, _ in block.named_children()) or "no parts"
            raise UnsupportedTowerError(
                f"{path}.{i} of {type(visual).__name__} is a {type(block).__name__} with {found}; "
                "expected an mlp after a second LayerNorm (ln_2 or norm2)."
            )
    widths = {_last(getattr(norm, "normalized_shape", None)) for norm in norms}
    if len(widths) != 1 or None in widths:
        raise UnsupportedTowerError(
            f"LayerNorms of {type(visual).__name__} have widths {widths}; expected a single one."
        )
    kinds = {_activation(mlp) for mlp in mlps if mlp is not None}
    return {
        "blocks": members,
        "norms": norms,
        "mlps": mlps,
        "width": widths.pop(),
        "hook_names": tuple(f"{path}.{i}.mlp" for i in range(len(members))),
        "activation": "/".join(sorted(kinds)),
    }


def _part(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    parts = (getattr(block, name, None) for name in names)
    return next((part for part in parts if isinstance(part, nn.Module)), None)


def _last(shape: Any) -> int | None:
    return int(shape[-1]) if isinstance(shape, Sequence) and shape else None


def _activation(mlp: nn.Module) -> str:
    part = _part(mlp, _ACTIVATIONS)
    return "unknown" if part is None else type(part).__name__


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    return repr(value)
