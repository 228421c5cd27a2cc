"""CLIP vision towers: what their MLPs do, and proxies in their place."""

from probinterp.vision.activation_data import ActivationData
from probinterp.vision.activation_shards import ManifestMismatchError
from probinterp.vision.activations import (
    open_activations,
    record_activations,
    stream_activations,
)
from probinterp.vision.backbones import LoadedClip, load_clip, save_clip
from probinterp.vision.tiny_clip import digits, tiny_clip
from probinterp.vision.towers import (
    Tower,
    TowerMismatchError,
    UnsupportedTowerError,
    resolve,
)
from probinterp.vision.zero_shot import (
    SelfDiscordance,
    TextEmbeddings,
    ZeroShotResult,
    self_discordance,
    text_embeddings,
    zero_shot,
)

__all__ = [
    "ActivationData",
    "LoadedClip",
    "ManifestMismatchError",
    "SelfDiscordance",
    "TextEmbeddings",
    "Tower",
    "TowerMismatchError",
    "UnsupportedTowerError",
    "ZeroShotResult",
    "digits",
    "load_clip",
    "open_activations",
    "record_activations",
    "resolve",
    "save_clip",
    "self_discordance",
    "stream_activations",
    "text_embeddings",
    "tiny_clip",
    "zero_shot",
]
