"""Held-out predictive checks of proxies of the MLPs of a vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from probinterp.criticism.proxy_checks import check_proxy
from probinterp.criticism.proxy_draws import fit_residual_model, residual_draws
from probinterp.criticism.token_layout import TokenLayout
from probinterp.reporting import Section, Table
from probinterp.vision import ActivationData

N_DRAWS, MOST_IMAGES = 399, 30  # draws: Holm over eight cells needs 2 / (S + 1) below .05 / 8
LEVEL = 0.05


@torch.no_grad()
def check_proxies(
    proxies: Mapping[str, Any],
    calibration: ActivationData,
    heldout: ActivationData,
    grid: tuple[int, int],
    seed: int = 0,
) -> pd.DataFrame:
    """Population predictive checks of each proxy, one row a proxy, discrepancy and cell.

    Every proxy predicts outputs with the residual covariance that it has on the calibration images,
    which trained nothing, by layer and token type.
    """
    new = heldout.images(torch.arange(min(MOST_IMAGES, heldout.n_images)))
    tables = []
    for name, proxy in proxies.items():
        residuals, _, layout = _predicted(proxy, calibration, grid)
        model = fit_residual_model(residuals, layout, by_type=True)
        left, x, layout = _predicted(proxy, new, grid)
        draws = residual_draws(x - left, layout, model, N_DRAWS, seed)
        rows = check_proxy(draws, x, layout, seed=seed).rows()
        tables.append(pd.DataFrame(rows).assign(proxy=name))
    return pd.concat(tables, ignore_index=True)


def checks_section(table: pd.DataFrame) -> Section:
    """Which discrepancies of each proxy reject, as a section of a page."""
    rejected = table[table["p_holm"] <= LEVEL]
    counts = pd.crosstab(rejected["proxy"], rejected["discrepancy"])
    counts = counts.reindex(table["proxy"].unique(), fill_value=0).rename_axis("proxy")
    n_cells = table["cell"].nunique()
    text = (
        "Does the proxy know how wrong it is? It predicts outputs of new images with the residual "
        "covariance of images that trained nothing; the number of layers and token types, of "
        f"{n_cells}, in which a discrepancy of the new outputs is out of range (Holm, 5 %). "
        "Correlated residuals of layers and neighbouring patches are errors that add up when all "
        "layers are replaced."
    )
    caption = f"{N_DRAWS} draws: the smallest two-sided p-value is {2 / (N_DRAWS + 1):.2f}."
    found = Table(counts.reset_index(), caption)
    return Section("Does it know how wrong it is?", text, tables=[found])


def _predicted(
    proxy: Any, data: ActivationData, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, TokenLayout]:
    """Residuals and outputs, (N, L, D), and how tokens make up images."""
    batch = data.batch()
    assert batch.image is not None
    assert batch.token_type is not None
    layout = TokenLayout(batch.image, batch.token_type, batch.x.shape[1], grid)
    return batch.x - proxy(batch.inputs), batch.x, layout
