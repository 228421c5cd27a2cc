"""Draws of the globals from several fits to resampled rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from probinterp.inference.data import Data
from probinterp.inference.predictive import ModelDraw, PredictiveDraws, Scoring, predictive_draws
from probinterp.inference.refits import fresh_copy, require_refit_options
from probinterp.inference.seeding import ONE_AT_A_TIME
from probinterp.inference.svi import fit
from probinterp.models.base import Batch, ProbabilisticModel


class EnsembleDraws:
    """Draws that cycle through an ensemble of models; made by :func:`bootstrap_draws`.

    Attributes
    ----------
    members
        Draws of each model of the ensemble.
    reference
        Draw of the original fit, for plug-in discrepancies.
    local, scoring
        As in :func:`predictive_draws`.
    point_estimate
        False: the members differ in their globals.
    n_obs
        Number of units of the original fit.
    globals_from
        How the globals were drawn, in words.
    """

    local = "prior"
    point_estimate = False

    def __init__(
        self,
        members: Sequence[PredictiveDraws],
        reference: ModelDraw,
        n_draws: int,
        n_obs: int,
        globals_from: str,
    ) -> None:
        self.members, self.reference = tuple(members), reference
        self.n_draws, self.n_obs, self.globals_from = n_draws, n_obs, globals_from
        self.scoring = reference.units.scoring

    def __len__(self) -> int:
        return self.n_draws

    def __iter__(self) -> Iterator[ModelDraw]:
        turns = [iter(member) for member in self.members]
        for index in range(self.n_draws):
            yield next(turns[index % len(turns)])


@dataclass(frozen=True)
class ResampledData:
    """Rows of a data set in an order of one's own, repeated or left out.

    Parameters
    ----------
    data
        Anything with ``len(data)`` and ``data.batch(index)``.
    rows
        Index of each row in ``data``, int64.
    """

    data: Data
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor | None = None) -> Batch:
        """Observations ``index`` of the resampled data, or all of them."""
        return self.data.batch(self.rows if index is None else self.rows[index])


def bootstrap_draws(
    model: ProbabilisticModel,
    data: Data,
    batch: Batch,
    n_fits: int,
    n_draws: int,
    *,
    scoring: Scoring = "inferred",
    warm_start: bool = False,
    seed: int = 0,
    n_jobs: int | None = None,
    **fit_options: Any,
) -> EnsembleDraws:
    r"""Draws from fits to bootstrap samples of the rows, for point-estimated models.

    .. math:: \theta_k = \mathrm{fit}(x_{i_1}, \dots, x_{i_N}), \quad
              i_n \sim \mathrm{Uniform}\{1, \dots, N\}, \quad k = 1, \dots, K

    Replicates come from the fits in turn and so carry the uncertainty of the estimate; the
    discrepancy stays at the original fit. This repairs the variance of a likelihood discrepancy,
    not its bias from the optimism of the fit: keep the held-out set below a tenth of the
    data, or calibrate by :func:`model_refits`.

    Parameters
    ----------
    model
        Fitted model: the reference.
    data
        The data that it was fitted to.
    batch
        Held-out observations: covariates and shape of the replicates, locals from the prior.
    n_fits
        Size of the ensemble, K; 30 or more.
    n_draws
        Number of draws, S.
    scoring
        As in :func:`predictive_draws`.
    warm_start
        Start each fit from the fitted weights.
    seed
        Seed of resampling, fits and replicates.
    n_jobs
        Fits at a time, as in ``joblib.Parallel``; the backend is the caller's.
    **fit_options
        Options of :func:`fit`, those of the original fit; by default on the CPU without a
        progress bar.

    Returns
    -------
    EnsembleDraws
        Iterable of draws with the original fit as ``reference``.

    Raises
    ------
    ValueError
        If a number is not positive or an option belongs to a single fit.
    """
    for name, number in {"n_fits": n_fits, "n_draws": n_draws}.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r}.")
    require_refit_options(fit_options)
    options = {"device": "cpu", "progress": False} | fit_options
    origin = copy.deepcopy(model).cpu().eval()
    seeds = np.random.SeedSequence(seed).generate_state(n_fits).tolist()
    run = delayed(_bootstrap_fit)
    fitted = Parallel(n_jobs=n_jobs)(run(origin, data, s, warm_start, options) for s in seeds)
    device, each = next(model.parameters()).device, -(-n_draws // n_fits)
    members = [
        predictive_draws(one.to(device), batch, each, scoring=scoring, seed=s)
        for one, s in zip(fitted, seeds, strict=True)
    ]
    reference = predictive_draws(model, batch, 1, scoring=scoring, seed=seed).reference
    words = f"{n_fits} fits to bootstrap samples of the {len(data)} units"
    return EnsembleDraws(members, reference, n_draws, len(data), words)


def _bootstrap_fit(
    model: ProbabilisticModel, data: Data, seed: int, warm_start: bool, options: dict[str, Any]
) -> ProbabilisticModel:
    rows = np.random.default_rng(seed).integers(len(data), size=len(data))
    resampled = ResampledData(data, torch.from_numpy(rows))
    with ONE_AT_A_TIME:
        again = copy.deepcopy(model) if warm_start else fresh_copy(model, seed)
        fit(again, resampled, seed=seed, **options)
    return again
