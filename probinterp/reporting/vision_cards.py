"""Feature cards: the images that activate a feature most, and where in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from probinterp.reporting.arrays import as_array
from probinterp.reporting.axes import SMALL_FONT, new_axes, set_heading

GAP = 0.08  # between pictures, in widths of one


class Card(Protocol):
    """One feature and its strongest images."""

    @property
    def layer(self) -> int: ...  # noqa: D102
    @property
    def feature(self) -> int: ...  # noqa: D102
    @property
    def images(self) -> Any: ...  # noqa: D102
    @property
    def heat_maps(self) -> Any: ...  # noqa: D102
    @property
    def labels(self) -> Any: ...  # noqa: D102
    @property
    def firing_rate(self) -> float: ...  # noqa: D102
    @property
    def target_norms(self) -> Any: ...  # noqa: D102


def plot_feature_card(
    card: Card,
    pictures: Any,
    *,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Strongest images of a feature above the activations of their patches.

    Parameters
    ----------
    card
        The feature.
    pictures
        Its images in the order of the card, (n, H, W) or (n, 3, H, W), of any range: each is
        scaled to its own smallest and largest value.
    class_names
        Names to print above the images, by label.
    ax
        Where to draw; a new figure by default.

    Raises
    ------
    ValueError
        If there is no image or their number is not that of the card.
    """
    pixels = np.asarray(pictures, dtype=np.float64)
    if len(pixels) != len(card.images) or not len(pixels):
        raise ValueError(
            f"the card has {len(card.images)} images, got {len(pixels)} pictures; it needs as many "
            "and at least one."
        )
    maps = as_array("heat_maps", card.heat_maps, 3, finite=True)
    n = len(pixels)
    ax = new_axes(ax, 0.85 + 0.78 * n, 2.3)
    strongest = maps.max() or 1.0
    for i in range(n):
        left = i * (1 + GAP)
        ax.imshow(_picture(pixels[i]), extent=(left, left + 1, 1 + GAP, 2 + GAP), cmap="gray")
        ax.imshow(maps[i], extent=(left, left + 1, 0, 1), cmap="viridis", vmin=0, vmax=strongest)
        if card.labels is not None and class_names is not None:
            label = int(card.labels[i])
            name = class_names[label] if label >= 0 else "?"
            ax.text(left + 0.5, 2.05 + GAP, name, ha="center", va="bottom", fontsize=SMALL_FONT)
    ax.set_xlim(0, n * (1 + GAP) - GAP)
    ax.set_ylim(0, 2.3 + GAP)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([0.5, 1.5 + GAP], ["patches", "image"], fontsize=SMALL_FONT)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    norms = as_array("target_norms", card.target_norms, 1, finite=True)
    reached = ", ".join(f"{j} ({v:.2g})" for j, v in enumerate(norms) if v > 0)
    set_heading(
        ax,
        f"Layer {card.layer}, feature {card.feature}: active in "
        f"{100 * card.firing_rate:.2g} % of tokens",
        f"writes to layers (norm): {reached}",
    )
    return ax


def _picture(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = pixels.min(), pixels.max()
    scaled = (pixels - low) / (high - low if high > low else 1.0)
    return scaled if scaled.ndim == 2 else np.moveaxis(scaled, 0, -1)
