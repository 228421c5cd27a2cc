"""CLIP vision towers: what their MLPs do, and proxies in their place."""

from probinterp.criticism.logit_drift import LogitDrift, logit_drift
from probinterp.vision.activation_data import ActivationData
from probinterp.vision.activation_shards import ManifestMismatchError
from probinterp.vision.activations import (
    open_activations,
    record_activations,
    stream_activations,
)
from probinterp.vision.backbones import LoadedClip, load_clip, save_clip
from probinterp.vision.cascade import Proxy
from probinterp.vision.contributions import Contributions, contributions
from probinterp.vision.evaluation import ReplacementEvaluation, evaluate_replacement
from probinterp.vision.faithfulness import (
    SubsetCorrectness,
    all_subsets,
    attributed_order,
    subset_correctness,
    without_each,
)
from probinterp.vision.faithfulness_curves import (
    FaithfulnessCurves,
    faithfulness_curves,
    orders_of,
)
from probinterp.vision.replacement import reaches_embedding, replace_mlps
from probinterp.vision.retrieval import (
    FeatureCard,
    StrongFeatures,
    TopImages,
    feature_card,
    strongest_features,
    top_images,
)
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
    "Contributions",
    "FaithfulnessCurves",
    "FeatureCard",
    "LoadedClip",
    "LogitDrift",
    "ManifestMismatchError",
    "Proxy",
    "ReplacementEvaluation",
    "SelfDiscordance",
    "StrongFeatures",
    "SubsetCorrectness",
    "TextEmbeddings",
    "TopImages",
    "Tower",
    "TowerMismatchError",
    "UnsupportedTowerError",
    "ZeroShotResult",
    "all_subsets",
    "attributed_order",
    "contributions",
    "digits",
    "evaluate_replacement",
    "faithfulness_curves",
    "feature_card",
    "load_clip",
    "logit_drift",
    "open_activations",
    "orders_of",
    "reaches_embedding",
    "record_activations",
    "replace_mlps",
    "resolve",
    "save_clip",
    "self_discordance",
    "stream_activations",
    "strongest_features",
    "subset_correctness",
    "text_embeddings",
    "tiny_clip",
    "top_images",
    "without_each",
    "zero_shot",
]
