"""What a check accepts: every refusal says what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, get_args

import numpy as np
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, Local, PredictiveDraw
from probinterp.criticism.result import Kind
from probinterp.criticism.stopping import SequentialStop

if TYPE_CHECKING:
    from probinterp.criticism.evaluation import Calibration, Plan


def validate(
    draws: object,
    x: Tensor,
    suite: Mapping[str, Discrepancy],
    plan: Plan,
    calibration: Calibration,
) -> None:
    """Raise TypeError or ValueError for arguments of a check that do not fit."""
    if plan.kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {plan.kind!r}.")
    for name, discrepancy in suite.items():
        if not callable(discrepancy):
            raise TypeError(
                "discrepancy must be a function (x, draw) -> Tensor, "
                f"got {type(discrepancy).__name__} for {name!r}."
            )
    _validate_draws(draws)
    _validate_calibration(plan, calibration)
    if not isinstance(plan.seed, int | np.integer) or plan.seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {plan.seed!r}.")
    if plan.stop is not None and not isinstance(plan.stop, SequentialStop):
        raise TypeError(f"stop must be a SequentialStop, got {type(plan.stop).__name__}.")
    if plan.n_reference < 1:
        raise ValueError(f"n_reference must be at least 1, got {plan.n_reference}.")
    validate_data(x, n_dims=None)


def _validate_draws(draws: object) -> None:
    if isinstance(draws, PredictiveDraw):
        raise TypeError(
            f"draws must be an iterable of draws, got a single {type(draws).__name__}; "
            "put it in a list."
        )
    if not isinstance(draws, Iterable):
        raise TypeError(f"draws must be an iterable of draws, got {type(draws).__name__}.")


def _validate_calibration(plan: Plan, calibration: Calibration) -> None:
    n_refits = calibration.n_refits
    if n_refits < 0 or n_refits == 1:
        raise ValueError(f"calibrate_refits must be 0 or at least 2, got {n_refits}.")
    if n_refits == 0:
        if calibration.refits is not None:
            raise ValueError("refits were given, but calibrate_refits is 0; say how many.")
        return
    if calibration.refits is None:
        raise ValueError(
            f"calibrate_refits={n_refits} needs refits: an object with simulate(seed) and "
            "fit(x_obs, x_new, seed)."
        )
    if plan.kind == "realised":
        raise ValueError("calibrate_refits needs kind='plugin' or kind='predictive'.")


def validate_data(x: object, *, n_dims: int | None = 2) -> None:
    """Raise TypeError or ValueError unless ``x`` is finite floating-point data (N, G).

    With ``n_dims=None`` a unit may be an array, (N, ...), such as the layers of a network.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"the data must be a torch.Tensor, got {type(x).__name__}.")
    if x.ndim < 2 or x.ndim != (n_dims or x.ndim) or x.numel() == 0:
        raise ValueError(f"the data must have shape (N, G), not empty, got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise TypeError(f"the data must be floating point, got {x.dtype}; use x.float().")
    if (bad := int((~x.isfinite()).sum())) > 0:
        raise ValueError(f"the data have {bad} NaN or infinite entries of {x.numel()}.")


def local_mode(draws: object) -> Local | None:
    """How the draws say that they make local latents."""
    local = getattr(draws, "local", None)
    if local not in (None, *get_args(Local)):
        raise ValueError(
            f"draws.local must be 'prior', 'posterior', 'observed' or 'covariates', got {local!r}."
        )
    return local


def fitted_size(draws: object, n_obs: int | None) -> int | None:
    """Size of the data of the fit: the argument, else what the draws say."""
    n_obs = getattr(draws, "n_obs", None) if n_obs is None else n_obs
    if n_obs is not None and n_obs < 1:
        raise ValueError(f"n_obs must be at least 1, got {n_obs}.")
    return n_obs
