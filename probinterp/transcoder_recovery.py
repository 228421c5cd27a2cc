"""How well a transcoder found planted features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FeatureMatch(NamedTuple):
    """For each true feature the learned one most like it, and how much.

    Attributes
    ----------
    latent
        Learned features, (L, G) int64.
    cosine
        Absolute cosine of the decoders, (L, G).
    """

    latent: Tensor
    cosine: Tensor


class GateCalibration(NamedTuple):
    """Probabilities that features are active, against how often they are, by bin.

    Attributes
    ----------
    predicted, observed
        Mean probability and share of active features, (n_bins,); NaN in empty bins.
    n
        Tokens and features of each bin, (n_bins,) int64.
    """

    predicted: Tensor
    observed: Tensor
    n: Tensor

    @property
    def error(self) -> Tensor:
        """Mean absolute difference of the two, weighted by the sizes of the bins, ()."""
        used = self.n > 0
        gap = (self.predicted - self.observed)[used].abs()
        return (gap * self.n[used]).sum() / self.n.sum()


def match_features(found: Tensor, true: Tensor) -> FeatureMatch:
    """Match features of each layer by their decoders.

    Parameters
    ----------
    found
        Learned decoders of each feature for all layers side by side, (L, H, M).
    true
        The planted ones, (L, G, M).
    """
    cosine = (_unit(true) @ _unit(found).mT).abs()
    best = cosine.max(2)
    return FeatureMatch(best.indices, best.values)


def support_f1(found: Tensor, true: Tensor, match: FeatureMatch) -> Tensor:
    r"""F1 score of which features are active, over tokens and true features, by layer.

    .. math:: F_1 = \frac{2\, TP}{2\, TP + FP + FN}

    Parameters
    ----------
    found
        Learned codes, (N, L, H).
    true
        Planted codes, (N, L, G).
    match
        Learned feature of each true one.

    Returns
    -------
    Tensor
        Shape (L,).
    """
    active = (found != 0).gather(2, match.latent.expand(len(found), -1, -1))
    wanted = true != 0
    agreed = 2 * (active & wanted).sum((0, 2))
    return agreed / (active.sum((0, 2)) + wanted.sum((0, 2))).clamp_min(1)


def gate_calibration(
    inclusion: Tensor, true: Tensor, match: FeatureMatch, *, n_bins: int = 10
) -> GateCalibration:
    """Compare probabilities of active codes with planted features, in bins of equal width.

    Parameters
    ----------
    inclusion
        Probabilities that learned codes are active, (N, L, H).
    true
        Planted codes, (N, L, G).
    match
        Learned feature of each true one.
    n_bins
        Number of bins.
    """
    probability = inclusion.gather(2, match.latent.expand(len(inclusion), -1, -1)).flatten()
    active = (true != 0).flatten().to(probability)
    index = (probability * n_bins).long().clamp_max(n_bins - 1)
    n = torch.bincount(index, minlength=n_bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(index, values, minlength=n_bins) / n

    return GateCalibration(mean(probability), mean(active), n)


def normalized_error(predicted: Tensor, x: Tensor) -> Tensor:
    """Squared error over the total sum of squares around the mean, by layer, (L,)."""
    error = (predicted - x).square().sum((0, 2))
    return error / (x - x.mean(0)).square().sum((0, 2))


def _unit(vectors: Tensor) -> Tensor:
    norm = vectors.norm(dim=2, keepdim=True)
    return vectors / norm.clamp_min(torch.finfo(norm.dtype).tiny)
