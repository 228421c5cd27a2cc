"""From image embeddings to class logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize


def class_logits(network: Any, features: Tensor, text: Tensor) -> Tensor:
    """Scaled cosines (..., C) of image embeddings (..., E) with class embeddings (C, E).

    Parameters
    ----------
    network
        CLIP network: its scale and, where it has one, its bias are used.
    features
        Image embeddings, not normalised.
    text
        Unit vectors of the classes.
    """
    unit = normalize(features.float(), dim=-1)
    logits = network.logit_scale.float().exp() * unit @ text.to(unit.device).mT
    bias = getattr(network, "logit_bias", None)
    return logits if bias is None else logits + bias.float()
