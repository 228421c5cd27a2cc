"""Specific factors that do not come back in refits, taken out of a model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

from probinterp.inference.data import Data
from probinterp.inference.proposals import refit
from probinterp.inference.stability import Stability
from probinterp.models.blocks import SHARED

REFIT_SHARE = 0.2  # of the epochs of a fit


class Screening(NamedTuple):
    """What :func:`screen_specific` did.

    Attributes
    ----------
    model
        Model without the columns that were removed, refitted; the given one where none was.
    removed
        Columns that were taken out for good.
    """

    model: Any
    removed: tuple[int, ...]


def screen_specific(
    model: Any,
    found: Stability,
    data: Data,
    *,
    max_epochs: int,
    threshold: float = 0.8,
    refit_share: float = REFIT_SHARE,
    seed: int = 0,
    **fit_options: Any,
) -> Screening:
    """Take out the specific factors that come back in too few refits, and refit the rest.

    A block of a few dozen samples and thousands of features finds directions in noise; nothing but
    other samples tells. Shared factors are left: they are fitted to all samples.

    Parameters
    ----------
    model
        Fitted multi-study model; it is not changed.
    found
        How its factors come back, see :func:`probinterp.inference.stability`.
    data
        Training data.
    max_epochs
        Epochs of the fit, a share of which the refit takes.
    threshold
        Share of refits in which a factor must come back.
    refit_share
        Epochs of the refit in units of ``max_epochs``.
    seed
        Seed of the refit.
    **fit_options
        Passed to :func:`probinterp.fit`.

    References
    ----------
    Stability selection (Meinshausen and Buehlmann, 2010).
    """
    columns, kept = found.reference.columns.tolist(), found.stable(threshold).tolist()
    block = model.block.tolist()
    removed = tuple(
        k for k, stays in zip(columns, kept, strict=True) if not stays and block[k] != SHARED
    )
    if not removed:
        return Screening(model, ())
    screened = deepcopy(model)
    screened.empty(removed, for_good=True)
    refit(screened, data, max(1, round(refit_share * max_epochs)), seed, fit_options)
    return Screening(screened, removed)
