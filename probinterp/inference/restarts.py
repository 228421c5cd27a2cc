"""Several fits from different starting values, all of them reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from joblib import Parallel, delayed

from probinterp.inference.data import Data
from probinterp.inference.elbo import full_objective
from probinterp.inference.history import FitHistory
from probinterp.inference.svi import fit
from probinterp.models.base import ProbabilisticModel


class Restarts(NamedTuple):
    """Result of :func:`fit_restarts`.

    Attributes
    ----------
    best
        Model with the largest objective.
    objectives
        ELBO per observation of every restart on the training data, global terms included and
        everything annealed to its end.
    histories
        History of every restart, in the order of ``seeds``.
    models
        Model of every restart, in the order of ``seeds``.
    seeds
        Seeds of weights, data order and sampling.
    """

    best: ProbabilisticModel
    objectives: tuple[float, ...]
    histories: tuple[FitHistory, ...]
    models: tuple[ProbabilisticModel, ...]
    seeds: tuple[int, ...]

    @property
    def best_index(self) -> int:
        """Position of the best restart."""
        return max(range(len(self.objectives)), key=self.objectives.__getitem__)


def fit_restarts(
    make_model: Callable[[], ProbabilisticModel],
    data: Data,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n_jobs: int = 1,
    **fit_options: Any,
) -> Restarts:
    """Fit models from several seeds and keep the one with the largest full objective.

    Parameters
    ----------
    make_model
        Function without arguments that makes a new model; called once a seed.
    data
        Training data.
    seeds
        One fit for each.
    n_jobs
        Fits at the same time; joblib's back end is the user's choice
        (``joblib.parallel_config``).
    **fit_options
        Passed to :func:`fit`; not ``seed`` and not ``checkpoint``.

    Raises
    ------
    ValueError
        If ``seeds`` is empty or has duplicates, or an option belongs to one fit only.
    """
    if len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be distinct and not empty, got {list(seeds)}.")
    for name in {"seed", "checkpoint"} & fit_options.keys():
        raise ValueError(f"{name} belongs to a single fit; use fit() or seeds=.")
    run = delayed(_fit_one)
    results = Parallel(n_jobs=n_jobs)(run(make_model, data, s, fit_options) for s in seeds)
    models, histories, objectives = (tuple(part) for part in zip(*results, strict=True))
    best = max(range(len(objectives)), key=objectives.__getitem__)
    return Restarts(models[best], objectives, histories, models, tuple(seeds))


def _fit_one(
    make_model: Callable[[], ProbabilisticModel], data: Data, seed: int, options: dict[str, Any]
) -> tuple[ProbabilisticModel, FitHistory, float]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model()
    history = fit(model, data, seed=seed, **options)
    return model, history, full_objective(model, data, seed=seed)
