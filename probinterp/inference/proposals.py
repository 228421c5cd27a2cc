"""Changes of a fitted model, kept only where they beat the unchanged model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from probinterp.inference.data import Data
from probinterp.inference.elbo import full_objective
from probinterp.inference.svi import fit


def refitted_if_better(
    model: Any, candidate: Any, data: Data, *, epochs: int, seed: int, options: dict[str, Any]
) -> tuple[Any, float] | None:
    """Refit ``candidate`` and return it with its objective, if it beats ``model`` refitted too.

    Longer training alone improves an objective, hence the refit of the unchanged model.

    Parameters
    ----------
    model
        Fitted model; it is not changed.
    candidate
        A changed copy, which is refitted in place.
    data
        Training data.
    epochs, seed, options
        Of both refits; the KL weight stays at 1.
    """
    control = deepcopy(model)
    for trained in (candidate, control):
        refit(trained, data, epochs, seed, options)
    found = full_objective(candidate, data, seed=seed)
    return None if found < full_objective(control, data, seed=seed) else (candidate, found)


def refit(model: Any, data: Data, epochs: int, seed: int, options: dict[str, Any]) -> None:
    """Train a fitted model for some epochs more, with the KL weight at 1."""
    warmup, model.kl_warmup = model.kl_warmup, 0.0  # annealed before
    try:
        fit(model, data, max_epochs=epochs, seed=seed, **({"progress": False} | options))
    finally:
        model.kl_warmup = warmup
