"""Is one layer needed more than each of the others, image by image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probinterp.criticism.comparison.cells import Cells, count_cells
from probinterp.criticism.comparison.mcnemar import mcnemar
from probinterp.criticism.multiplicity import adjust


class LayerContrasts(NamedTuple):
    """One layer left out against each other layer left out.

    Parameters
    ----------
    top
        The layer that an attribution puts first.
    others
        The other layers, M of them.
    difference
        Accuracy without another layer minus accuracy without the top one, (M,): positive where the
        top one is needed more.
    p_value
        Mid-p McNemar, two-sided, (M,).
    p_adjusted
        The same after Holm's correction, (M,).
    rank
        Layers whose absence costs at least as much, the top one included; among so few layers the
        smallest rank p-value is one over their number.
    """

    top: Any
    others: tuple[Any, ...]
    difference: Tensor
    p_value: Tensor
    p_adjusted: Tensor
    rank: int


def layer_contrasts(correct_without: Mapping[Hashable, Any], top: Hashable) -> LayerContrasts:
    """Compare leaving out the top layer with leaving out each other layer.

    Parameters
    ----------
    correct_without
        Whether each image is recognised, (N,), by the layer that was left out.
    top
        The layer that an attribution puts first.

    Raises
    ------
    KeyError
        If the top layer is not among the layers.
    ValueError
        If there is no other layer.
    """
    if top not in correct_without:
        raise KeyError(f"layer {top!r} is not among {list(correct_without)}.")
    others = tuple(layer for layer in correct_without if layer != top)
    if not others:
        raise ValueError("there is no other layer to compare with.")
    cells: list[Cells] = [
        count_cells(correct_without[top], correct_without[layer]) for layer in others
    ]
    p = torch.tensor([mcnemar(c.network_only, c.proxy_only) for c in cells], dtype=torch.float64)
    difference = torch.tensor([c.difference for c in cells], dtype=torch.float64)
    rank = 1 + int((difference <= 0).sum())
    return LayerContrasts(top, others, difference, p, adjust(p, "holm"), rank)
