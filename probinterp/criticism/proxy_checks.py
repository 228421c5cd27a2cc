"""Held-out predictive checks of the proxy of a network, with the image as the unit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy
from probinterp.criticism.discrepancies.proxies import (
    ChiSquare,
    Cosine,
    IntervalCoverage,
    LargestChannel,
    NormQuantile,
    PitDistance,
    ReconstructionError,
)
from probinterp.criticism.discrepancies.proxy_dependence import LayerCorrelation, MoranI
from probinterp.criticism.discrepancies.token_cells import CellDiscrepancy
from probinterp.criticism.draws import PredictiveDraw
from probinterp.criticism.evaluation import Calibration, Plan, evaluate
from probinterp.criticism.image_uniformity import ImageChecks, image_checks
from probinterp.criticism.proxy_result import ProxyCheckResult
from probinterp.criticism.proxy_summaries import (
    MakeSuite,
    ProxyBlock,
    SummaryDraws,
    image_values,
    pooled_values,
)
from probinterp.criticism.result import Check, PopPCResult
from probinterp.criticism.token_layout import TokenLayout

LEVELS = (0.5, 0.9, 0.99)
IMAGES = " of each image"


def proxy_suite(layout: TokenLayout) -> dict[str, CellDiscrepancy]:
    """Discrepancies of activations that fit a layout, by name.

    Without several layers there is no correlation between them, and no Moran's I without a grid.
    """
    suite: list[CellDiscrepancy] = [
        ReconstructionError(layout),
        NormQuantile(layout),
        LargestChannel(layout),
        ChiSquare(layout),
        PitDistance(layout),
        *(IntervalCoverage(layout, level) for level in LEVELS),
        Cosine(layout),
        Cosine(layout, 0.05),
    ]
    if layout.n_layers > 1:
        suite.insert(3, LayerCorrelation(layout))
    if layout.grid is not None and layout.grid[0] * layout.grid[1] > 1:
        suite.insert(4, MoranI(layout))
    return {one.__name__: one for one in suite}


def check_proxy(
    draws: Iterable[PredictiveDraw],
    x: Tensor,
    layout: TokenLayout,
    *,
    make_suite: MakeSuite = proxy_suite,
    check: Check = "pop-pc",
    n_obs: int | None = None,
    seed: int = 0,
) -> ProxyCheckResult:
    r"""Compare a network's activations on new images with what its proxy predicts of them.

    .. math:: p_i = \Pr\big(d(y^{rep}_i, x_i) \ge d(y^{new}_i, x_i)\big), \qquad
        y^{rep} \sim p(y \mid x^{new})

    for every image i, and with the d of all images together for every layer and token type. The
    proxy sees the inputs x of the layers alone, so that nothing of the compared outputs enters
    what it predicts.

    Parameters
    ----------
    draws
        Draws that replicate the outputs for the inputs of the compared images, (N, L, D), for
        instance :func:`residual_draws` or ``predictive_draws(transcoder, batch, 200)``.
    x
        Outputs of the network's layers for these images, shape (N, L, D), floating point.
    layout
        How the tokens make up images.
    make_suite
        Makes the discrepancies by name from a layout.
    check
        ``"pop-pc"`` for images that entered neither the fit nor the residual model; ``"ppc"``, the
        classical check, for those that did: its p-values are not uniform and see little.
    n_obs
        Number of images of the fit, where ``draws`` are of point-estimated parameters; the check
        says when the compared images are too many for it.
    seed
        Seed of what breaks ties, and of torch's generators while draws replicate.

    Returns
    -------
    ProxyCheckResult
        p-values for all images together by cell, and for every image.

    Raises
    ------
    TypeError, ValueError
        As :func:`pop_pc`, and if the layout does not fit the activations.

    Warns
    -----
    CriticismWarning
        As :func:`pop_pc`.

    References
    ----------
    Population predictive checks (Ranganath and Blei, 2019).

    Examples
    --------
    >>> import torch
    >>> from probinterp.criticism import TokenLayout, fit_residual_model, residual_draws
    >>> layout = TokenLayout(torch.arange(60), torch.zeros(60, dtype=torch.int64), n_layers=2)
    >>> model = fit_residual_model(torch.randn(60, 2, 4), layout)
    >>> draws = residual_draws(torch.zeros(60, 2, 4), layout, model, n_draws=100)
    >>> sorted(check_proxy(draws, 3 * torch.randn(60, 2, 4), layout).flagged())[:2]
    ['chi_square', 'interval_coverage(0.5)']
    """
    block = ProxyBlock(draws, x, layout)
    return check_proxy_blocks([block], make_suite=make_suite, check=check, n_obs=n_obs, seed=seed)


def check_proxy_blocks(
    blocks: Sequence[ProxyBlock],
    *,
    make_suite: MakeSuite = proxy_suite,
    check: Check = "pop-pc",
    n_obs: int | None = None,
    seed: int = 0,
) -> ProxyCheckResult:
    """:func:`check_proxy` a few images at a time, for more than fit into memory.

    Parameters
    ----------
    blocks
        The compared images, every image in one block. Draw s of all blocks makes replicate s: they
        must have the same globals and different random numbers. :meth:`TokenLayout.blocks` makes
        the layouts.
    make_suite, check, n_obs, seed
        As for :func:`check_proxy`.

    Raises
    ------
    ValueError
        As :func:`check_proxy`, and if there is no block or blocks differ in layers, tokens per
        image, or number of draws.

    Notes
    -----
    Beside what the draws hold, memory is that of the predictive means of all images and of the
    replicate of one block, plus a row of summaries per image.
    """
    _require_blocks(blocks)
    draws = SummaryDraws(blocks, make_suite)
    suite = {}
    for name in draws.suite:
        suite[name] = discrepancy(pooled_values(draws, name), name=name)
        suite[name + IMAGES] = image_values(draws, name)
    plan = Plan(check, "plugin", None, 1, seed, n_obs, None)
    results, objections = evaluate(draws, draws.heldout, suite, plan, Calibration())
    for category, text in objections:
        warnings.warn(text, category, stacklevel=2)
    n_images = len(draws.heldout)
    images = {name: _image_checks(results, name, n_images) for name in draws.suite}
    pooled = {name: results[name] for name in draws.suite}
    return ProxyCheckResult(pooled, images, n_images, blocks[0].layout.n_tokens)


def _image_checks(results: Mapping[str, PopPCResult], name: str, n_images: int) -> ImageChecks:
    each, labels = results[name + IMAGES], results[name].labels
    assert labels is not None
    shape = (n_images, len(labels))
    return image_checks(
        name,
        labels,
        each.heldout.reshape(shape),
        each.replicated.reshape(-1, *shape),
        each.uniform.reshape(shape),
    )


def _require_blocks(blocks: Sequence[ProxyBlock]) -> None:
    if not blocks:
        raise ValueError("there is no block of images to check.")
    for block in blocks:
        n_layers, n_tokens = block.layout.n_layers, len(block.layout.image)
        if block.x.ndim != 3 or block.x.shape[:2] != (n_tokens, n_layers):
            raise ValueError(
                f"the activations must have shape ({n_tokens}, {n_layers}, D) by their layout, "
                f"got {tuple(block.x.shape)}."
            )
        first = blocks[0].layout
        if (n_layers, block.layout.n_tokens_of) != (first.n_layers, first.n_tokens_of):
            raise ValueError(
                "all blocks must have the same layers and tokens per image; the first has "
                f"{first.n_layers} layers and {first.n_tokens} tokens, another {n_layers} and "
                f"{block.layout.n_tokens}."
            )
