"""Deletion and insertion curves: sources are taken away, or added, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from probinterp.vision.cascade import Proxy
from probinterp.vision.contributions import Contributions
from probinterp.vision.faithfulness import (
    Sources,
    SubsetCorrectness,
    attributed_order,
    subset_correctness,
)
from probinterp.vision.towers import Tower
from probinterp.vision.zero_shot import TextEmbeddings


class FaithfulnessCurves(NamedTuple):
    """Correctness of images while sources are taken away or added in some order.

    Attributes
    ----------
    orders
        Name to order of the sources: ``"contribution"``, ``"norm"``, ``"reverse"`` and
        ``"random 0"``, ``"random 1"``, ...
    deletion
        Name to correctness, boolean (L + 1, N): at step s the first s sources are left out.
    insertion
        The same with only the first s sources kept.
    kept_fraction
        Share of sources that is kept at each step of a deletion, (L + 1,); of an insertion it is
        one minus that.
    network
        Whether the network itself recognises each image, (N,).
    """

    orders: dict[str, Sources]
    deletion: dict[str, Tensor]
    insertion: dict[str, Tensor]
    kept_fraction: Tensor
    network: Tensor


def orders_of(scores: Contributions, *, n_random: int = 100, seed: int = 0) -> dict[str, Sources]:
    """Orders of the sources: by contribution to the last layer, and what to compare it with.

    Parameters
    ----------
    scores
        Contributions.
    n_random
        Number of random orders.
    seed
        Seed of these.
    """
    by_score = attributed_order(scores)
    generator = np.random.default_rng(seed)
    random = (generator.permutation(len(by_score)).tolist() for _ in range(n_random))
    return {
        "contribution": by_score,
        "norm": attributed_order(scores.norm),
        "reverse": by_score[::-1],
        **{f"random {i}": tuple(order) for i, order in enumerate(random)},
    }


def faithfulness_curves(
    backbone: nn.Module | Tower,
    clt: Proxy,
    images: Any,
    text: TextEmbeddings,
    orders: Mapping[str, Sequence[int]],
    **options: Any,
) -> FaithfulnessCurves:
    """Correctness along several orders of the sources; every set of sources is run once.

    Parameters
    ----------
    backbone, clt, images, text, **options
        As for :func:`subset_correctness`.
    orders
        Name to order of all sources, such as :func:`orders_of` gives.

    Raises
    ------
    ValueError
        If an order does not have every source once.
    """
    for name, order in orders.items():
        if sorted(order) != list(range(clt.n_layers)):
            raise ValueError(
                f"order {name!r} must have each of the {clt.n_layers} sources once, got "
                f"{list(order)}."
            )
    steps = range(clt.n_layers + 1)
    prefixes = {name: [_sorted(order[:s]) for s in steps] for name, order in orders.items()}
    suffixes = {name: [_sorted(order[s:]) for s in steps] for name, order in orders.items()}
    sets = {kept for nested in (prefixes, suffixes) for run in nested.values() for kept in run}
    found = subset_correctness(backbone, clt, images, text, subsets=sorted(sets), **options)
    return FaithfulnessCurves(
        orders={name: tuple(order) for name, order in orders.items()},
        deletion=_curves(found, suffixes),
        insertion=_curves(found, prefixes),
        kept_fraction=1 - torch.arange(clt.n_layers + 1, dtype=torch.float64) / clt.n_layers,
        network=found.network,
    )


def _sorted(sources: Sequence[int]) -> Sources:
    return tuple(sorted(sources))


def _curves(found: SubsetCorrectness, nested: Mapping[str, list[Sources]]) -> dict[str, Tensor]:
    place = {kept: row for row, kept in enumerate(found.subsets)}
    return {name: found.correct[[place[kept] for kept in run]] for name, run in nested.items()}
