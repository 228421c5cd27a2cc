"""Held-out predictive checks of proxies of the MLPs of a vision tower."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from probinterp.criticism import PointEstimateWarning
from probinterp.criticism.proxy_checks import check_proxy
from probinterp.criticism.proxy_draws import fit_residual_model, residual_draws
from probinterp.criticism.proxy_result import ProxyCheckResult
from probinterp.criticism.token_layout import PATCH, TokenLayout
from probinterp.inference import predictive_draws
from probinterp.jobs.clt_code_checks import is_uncertain
from probinterp.jobs.clt_evaluation import chosen_images
from probinterp.models import ActivationBatch
from probinterp.reporting import Figure, Section, Table, plot_proxy_checks
from probinterp.vision import ActivationData

N_DRAWS = 299  # a level of 5 % for twelve discrepancies together takes 239 at least
MOST_IMAGES, MOST_CALIBRATION, FEWEST = 30, 200, 20
LEVEL, MOST_CODES = 0.05, 2**25


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
    which trained nothing, by layer and token type: at most 200 calibration images and 30 others,
    drawn at random. Uncertain codes are checked by their own predictive law too, where they are at
    most 2^25. A
    cell is ``flagged`` where it rejects at 5 % over all discrepancies and cells of the proxy.
    """
    known = calibration.images(chosen_images(calibration, MOST_CALIBRATION, seed))
    new = heldout.images(chosen_images(heldout, MOST_IMAGES, seed))
    tables = []
    for name, proxy in proxies.items():
        if is_uncertain(proxy) and len(new) * proxy.n_layers * proxy.n_latents <= MOST_CODES:
            tables.append(_flagged(_own_law(proxy, new, grid, seed), f"{name}, own law"))
        residuals, _, layout = _predicted(proxy, known, grid)
        enough = len(residuals) > 2 * residuals.shape[2]
        covariance: Any = "full" if enough else "diagonal"
        model = fit_residual_model(residuals, layout, covariance=covariance, by_type=True)
        left, x, layout = _predicted(proxy, new, grid)
        draws = residual_draws(x - left, layout, model, N_DRAWS, seed)
        tables.append(_flagged(check_proxy(draws, x, layout, seed=seed), name))
    return pd.concat(tables, ignore_index=True)


def _flagged(found: ProxyCheckResult, name: str) -> pd.DataFrame:
    table = pd.DataFrame(found.rows())
    each = LEVEL / len(found.pooled)
    return table.assign(flagged=table["p_family"] <= each, proxy=name)


def _own_law(
    proxy: Any, data: ActivationData, grid: tuple[int, int], seed: int
) -> ProxyCheckResult:
    """Checks by draws of codes and noise; parameters are as fitted, which the page says."""
    batch, layout = _laid_out(data, grid)
    draws = predictive_draws(proxy, batch, N_DRAWS, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PointEstimateWarning)
        return check_proxy(draws, batch.x, layout, seed=seed)


def check_on_heldout(
    proxies: Mapping[str, Any], heldout: ActivationData, grid: tuple[int, int], seed: int = 0
) -> pd.DataFrame | None:
    """:func:`check_proxies` with one half of the held-out images for the residual covariance.

    None if there are fewer than 20 images.
    """
    if heldout.n_images < FEWEST:
        return None
    calibration, new = heldout.split(fraction=0.5, seed=seed)
    return check_proxies(proxies, calibration, new, grid, seed)


def checks_section(table: pd.DataFrame | None) -> Section:
    """Which discrepancies of each proxy reject, as a section of a page."""
    title = "Does it know how wrong it is?"
    if table is None:
        return Section(title, f"Not checked: left out, or fewer than {FEWEST} held-out images.")
    names = table["proxy"].unique()
    flagged = table[table["flagged"]]
    counts = pd.crosstab(flagged["discrepancy"], flagged["proxy"])
    counts = counts.reindex(
        index=table["discrepancy"].unique(), columns=names, fill_value=0
    ).rename_axis("discrepancy")
    n_cells = table["cell"].nunique()
    text = (
        "Each proxy predicts the outputs of new images with the residual covariance that it has on "
        "other images, which trained nothing. Discrepancies of the new outputs are compared with "
        f"those of {N_DRAWS} replicates, in each layer and for each type of token. Correlated "
        "residuals of layers (layer_correlation) and of neighbouring patches (moran_i) are errors "
        "that add up when all layers are replaced. A check that does not reject shows no more than "
        "that so many images do not contradict the prediction. Own law: a spike-and-slab "
        "transcoder by its own draws of codes and noise instead, at the fitted parameters."
    )
    caption = (
        f"Number of layers and token types flagged, of {n_cells}; 5 % over all discrepancies and "
        "cells of a proxy together (maximum of the replicates, Bonferroni over discrepancies)."
    )
    figures = [Figure(_panel(table, name), f"{name}: dots are flagged.") for name in names]
    return Section(title, text, figures, [Table(counts.reset_index(), caption)])


def flagged_discrepancies(table: pd.DataFrame) -> dict[str, list[str]]:
    """Discrepancies that reject in some cell, by proxy."""
    return {
        str(name): mine.loc[mine["flagged"], "discrepancy"].unique().tolist()
        for name, mine in table.groupby("proxy", sort=False)
    }


def check_sentence(name: str, flagged: Sequence[str]) -> str:
    """What the checks say of one proxy."""
    said = f"flag {', '.join(flagged)}" if flagged else "reject nothing"
    return f"{name}: held-out predictive checks {said}."


def _panel(table: pd.DataFrame, name: str) -> Any:
    """Heat map of one proxy."""
    mine = table[table["proxy"] == name]
    rows, columns = mine["discrepancy"].unique().tolist(), mine["cell"].unique().tolist()

    def wide(column: str) -> Any:
        return mine.pivot(index="discrepancy", columns="cell", values=column).reindex(
            index=rows, columns=columns
        )

    return plot_proxy_checks(
        wide("z").to_numpy(float),
        wide("flagged").eq(True).to_numpy(),
        discrepancies=rows,
        cells=[c if c.startswith("layer") else f"all layers, {c}" for c in columns],
        title=name,
    )


def _predicted(
    proxy: Any, data: ActivationData, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, TokenLayout]:
    """Residuals and outputs, (N, L, D), and how tokens make up images."""
    batch, layout = _laid_out(data, grid)
    return batch.x - proxy(batch.inputs), batch.x, layout


def _laid_out(data: ActivationData, grid: tuple[int, int]) -> tuple[ActivationBatch, TokenLayout]:
    batch = data.batch()
    assert batch.image is not None
    assert batch.token_type is not None
    has_patches = bool((batch.token_type == PATCH).any())
    n_layers = batch.x.shape[1]
    layout = TokenLayout(batch.image, batch.token_type, n_layers, grid if has_patches else None)
    return batch, layout
