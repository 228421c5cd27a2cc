"""Features by the number of factors that reach them, and how they are cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from probinterp.likelihoods import Features


@dataclass(frozen=True)
class FeaturePlan:
    """Features by the number of factors that reach them: several, exactly one, none."""

    several: Features
    single: tuple[tuple[int, Tensor], ...]
    empty: Features

    @property
    def n_several(self) -> int:
        """Number of features that several factors reach."""
        several = self.several
        return several.stop - several.start if isinstance(several, slice) else len(several)

    def split(self, n_parts: int) -> list[FeaturePlan]:
        """Plans of about equal work that together are this one."""
        size = -(-self.n_several // n_parts)
        several = list(chunks(self.several, size))
        return [
            FeaturePlan(part, self.single[i::n_parts], self.empty if i == 0 else slice(0, 0))
            for i, part in enumerate(several)
        ]


def all_features_plan(n_features: int) -> FeaturePlan:
    """Plan that assumes nothing about the loadings."""
    return FeaturePlan(slice(0, n_features), (), slice(0, 0))


def plan_features(support: Tensor) -> FeaturePlan:
    """Sort features by their support.

    Parameters
    ----------
    support
        True where a factor reaches a feature, shape (G, K). It is copied to the host once.
    """
    on_host = support.cpu()
    n_active, factor = on_host.sum(1), on_host.int().argmax(1)
    if bool((n_active > 1).all()):
        return all_features_plan(len(support))
    single = n_active == 1
    groups = tuple(
        (k, (single & (factor == k)).nonzero().squeeze(1).to(support.device))
        for k in factor[single].unique().tolist()
    )
    several, empty = ((n_active > 1).nonzero().squeeze(1), (n_active == 0).nonzero().squeeze(1))
    return FeaturePlan(several.to(support.device), groups, empty.to(support.device))


def chunks(features: Features, size: int) -> Iterator[Features]:
    """Parts of at most ``size`` features, none of them empty."""
    if isinstance(features, slice):
        for start in range(features.start, features.stop, size):
            yield slice(start, min(start + size, features.stop))
    else:
        yield from (chunk for chunk in features.split(size) if len(chunk))
