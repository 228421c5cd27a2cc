"""Repeating a fit on data that the fitted model simulates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probinterp.configuration import construct
from probinterp.inference.data import Data, as_batch, data_of
from probinterp.inference.predictive import PredictiveDraws, Scoring, predictive_draws
from probinterp.inference.seeding import ONE_AT_A_TIME
from probinterp.inference.svi import fit
from probinterp.models.base import AnyBatch, ProbabilisticModel

SEEDS = 2**31  # larger seeds are folded: the data order multiplies them


@dataclass(frozen=True)
class ModelRefits:
    """How to simulate from a fitted model and fit it again; made by :func:`model_refits`.

    Everything depends on arguments and seeds alone, and the object can be pickled, so that
    refits may run in other processes; threads take turns.

    Attributes
    ----------
    model
        The fitted model, on the CPU.
    batch_obs, batch_new
        Covariates of the training data and of the new units, on the CPU; of ``x`` only what the
        likelihood takes from it as given, such as row totals, is used.
    n_draws
        Replicates of each refitted model.
    scoring
        As in :func:`predictive_draws`.
    warm_start
        Whether a refit starts from the fitted weights.
    fit_options
        Passed to :func:`fit`.
    """

    model: ProbabilisticModel
    batch_obs: AnyBatch
    batch_new: AnyBatch
    n_draws: int
    scoring: Scoring
    warm_start: bool
    fit_options: Mapping[str, Any]

    def simulate(self, seed: int) -> tuple[Tensor, Tensor]:
        """Training data and new data drawn from the fitted model, locals from their prior."""
        first = 2 * (seed % SEEDS)
        return (
            _simulated(self.model, self.batch_obs, first),
            _simulated(self.model, self.batch_new, first + 1),
        )

    def fit(self, x_obs: Tensor, x_new: Tensor, seed: int) -> PredictiveDraws:
        """Fit to ``x_obs`` and return draws that replicate data with the new units' covariates.

        Of ``x_new`` only what the likelihood takes as given, such as row totals, is used.
        """
        seed, batch = seed % SEEDS, self.batch_new._replace(x=x_new)
        model = self.refitted(self.batch_obs._replace(x=x_obs), seed)
        return predictive_draws(model, batch, self.n_draws, scoring=self.scoring, seed=seed)

    def refitted(self, batch: AnyBatch, seed: int) -> ProbabilisticModel:
        """A copy of the model, fitted to ``batch`` from its start."""
        with ONE_AT_A_TIME:
            model = copy.deepcopy(self.model) if self.warm_start else fresh_copy(self.model, seed)
            fit(model, data_of(batch), seed=seed, **self.fit_options)
        return model


def model_refits(
    model: ProbabilisticModel,
    data: Data,
    batch_new: AnyBatch,
    *,
    n_draws: int = 100,
    scoring: Scoring = "inferred",
    warm_start: bool = False,
    **fit_options: Any,
) -> ModelRefits:
    r"""Make the refits that calibrate a check of a point-estimated model.

    A refit draws training data and new data from the fitted model, with the covariates of
    the real ones and local latents from their prior, and fits a copy of the model to the former.
    The distribution of the discrepancy over refits then holds the error and the optimism of the
    fit, which replicates from a single estimate lack.

    Parameters
    ----------
    model
        Fitted model; it is copied.
    data
        The data that it was fitted to.
    batch_new
        The new units.
    n_draws
        Replicates of each refitted model.
    scoring
        As in :func:`predictive_draws`; use the one of the check that is calibrated.
    warm_start
        Start each refit from the fitted weights, which a few epochs can then move, instead of
        from new ones, with data-driven starting values where the model has them. Only for fits
        that reach the optimum, see the notes.
    **fit_options
        Options of :func:`fit`, those of the original fit; by default on the CPU without a
        progress bar.

    Returns
    -------
    ModelRefits
        For ``pop_pc(..., calibrate_refits=B, refits=...)``.

    Raises
    ------
    ValueError
        If an option belongs to a single fit.

    Notes
    -----
    A refit must be what the original fit was. Maximum likelihood forgets where it started,
    and warm starts are then exact and cheap. A network that is stopped before its optimum
    does not: a warm refit starts at the very parameters that made its data, overfits less than
    the original fit did, and a correct model is still rejected. Even full refits assume that
    the fitted model is close to the truth; where it overfits by many standard deviations of the
    discrepancy they are only a partial remedy.

    References
    ----------
    Calibrating posterior predictive p-values by repeating the analysis on simulated data:
    Hjort, Dahl and Steinbakk, Post-processing posterior predictive p values (JASA, 2006).
    """
    require_refit_options(fit_options)
    options = {"device": "cpu", "progress": False} | fit_options
    return ModelRefits(
        copy.deepcopy(model).cpu().eval(),
        as_batch(data),
        as_batch(batch_new),
        n_draws,
        scoring,
        warm_start,
        options,
    )


def require_refit_options(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for options that belong to a single fit."""
    for name in sorted({"seed", "checkpoint", "heldout", "early_stopping"} & options.keys()):
        raise ValueError(f"{name} belongs to a single fit; refits have their own or none.")


def fresh_copy(model: ProbabilisticModel, seed: int) -> ProbabilisticModel:
    """A new model with the same configuration and its own random starting values."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = construct(model.configuration)
    assert isinstance(made, ProbabilisticModel)
    return made.to(next(model.parameters()).dtype)


def _simulated(model: ProbabilisticModel, batch: AnyBatch, seed: int) -> Tensor:
    return next(iter(predictive_draws(model, batch, 1, seed=seed))).replicate()
