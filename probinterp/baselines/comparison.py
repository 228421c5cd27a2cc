"""Several methods on the same data of several studies."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from probinterp.baselines.covariances import sample_covariance
from probinterp.baselines.fitted_model import studies_of
from probinterp.baselines.protocol import Baseline, FittedBaseline, require_known
from probinterp.baselines.results import BaselineResult, Comparison
from probinterp.inference import ArrayData, Data
from probinterp.inference.data import as_batch
from probinterp.models import Batch
from probinterp.recovery import (
    SHARED,
    MatchedCorrelation,
    SupportScores,
    matched_correlation,
    relative_frobenius,
    rv_coefficient,
    support_scores,
)


def compare(
    baselines: Sequence[Baseline],
    train: Data,
    heldout: Data | Batch,
    *,
    truth: Any = None,
    standardised: bool = False,
    seed: int = 0,
    n_jobs: int = 1,
) -> Comparison:
    r"""Fit methods to the same data and judge them on the same held-out observations.

    .. math:: \bar\Delta = \frac1N \sum_i \log p_a(x_i) - \log p_b(x_i), \quad
        \mathrm{se} = \mathrm{sd}(\Delta_i) / \sqrt N

    Parameters
    ----------
    baselines
        Methods, with different names.
    train, heldout
        Data with studies. Size factors mark counts: covariances are then those of counts at size
        factor 1.
    truth
        What the data were made from, or None. Its attributes are used where it has them:
        ``covariance(study)`` (G, G), ``support`` (G, K), ``block`` (K,), and ``z`` (N, K), the
        factors of the training data. Without ``covariance`` those of the methods are compared with
        the sample covariances of the held-out data.
    standardised
        Whether covariances are compared in units of the standard deviations of the features.
        Otherwise those of abundant counts outweigh all others.
    seed
        Seed of every fit.
    n_jobs
        Methods at a time, in processes of their own; joblib's back end is the user's choice.

    Returns
    -------
    Comparison
        Pointwise log densities, covariance errors, recovery, times.

    Raises
    ------
    ValueError
        If names are not distinct, the data do not fit together, held-out observations are of
        studies that were not fitted, or the truth has another shape.

    Notes
    -----
    Log densities without closed form are importance-weighted estimates, which are too low on
    average; methods with a closed form are not.
    """
    names = [baseline.name for baseline in baselines]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"baselines must have distinct names and not be empty, got {names}.")
    fitted_to, batch = ArrayData.of(as_batch(train)), as_batch(heldout)
    _require_comparable(fitted_to, batch)
    _require_truth(truth, fitted_to)
    study = batch.study
    if study is None:
        study = torch.zeros(len(batch.x), dtype=torch.long)
    studies = studies_of(fitted_to)
    references = [_reference(truth, batch.rows(study == m), m) for m in studies]
    judge = _Judge(fitted_to, batch, truth, studies, references, standardised, seed)
    run = delayed(judge)
    results = Parallel(n_jobs=n_jobs)(run(baseline) for baseline in baselines)
    known = "held-out sample" if getattr(truth, "covariance", None) is None else "truth"
    return Comparison(tuple(results), study, studies, known)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Fits and judges one method."""

    train: ArrayData
    heldout: Batch
    truth: Any
    studies: tuple[int, ...]
    references: list[Tensor | None]
    standardised: bool
    seed: int

    def __call__(self, baseline: Baseline) -> BaselineResult:
        started = time.perf_counter()
        fitted = baseline.fit(self.train, self.seed)
        seconds = time.perf_counter() - started
        density = fitted.log_density(self.heldout).double()
        if density.shape != (len(self.heldout.x),) or density.isnan().any():
            raise ValueError(f"{baseline.name}: expected one log density an observation, not NaN.")
        rv, frobenius = self._covariances(fitted)
        return BaselineResult(
            baseline.name,
            density,
            rv,
            frobenius,
            fitted.covariance_draws,
            self._support(fitted),
            self._correlation(fitted),
            seconds,
        )

    def _covariances(self, fitted: FittedBaseline) -> tuple[Tensor, Tensor]:
        found = []
        for m, reference in zip(self.studies, self.references, strict=True):
            if reference is None:
                found.append((math.nan, math.nan))
                continue
            estimate = fitted.covariance(m).detach().double().cpu()
            if self.standardised:
                scale = reference.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
                units = torch.outer(scale, scale)
                estimate, reference = estimate / units, reference / units
            pair = rv_coefficient(estimate, reference), relative_frobenius(estimate, reference)
            found.append(pair)
        rv, frobenius = torch.tensor(found, dtype=torch.float64).unbind(1)
        return rv, frobenius

    def _support(self, fitted: FittedBaseline) -> dict[str, SupportScores] | None:
        true, found = getattr(self.truth, "support", None), fitted.support
        if true is None or found is None:
            return None
        scores = {"all": support_scores(found, true)}
        true_block, block = getattr(self.truth, "block", None), fitted.block
        if true_block is None or block is None:
            return scores
        ours, theirs = block == SHARED, true_block == SHARED
        scores["shared"] = support_scores(found[:, ours], true[:, theirs])
        scores["specific"] = support_scores(
            found[:, ~ours],
            true[:, ~theirs],
            found_block=block[~ours],
            true_block=true_block[~theirs],
        )
        return scores

    def _correlation(self, fitted: FittedBaseline) -> MatchedCorrelation | None:
        z, true_block = (getattr(self.truth, name, None) for name in ("z", "block"))
        if z is None or true_block is None:
            return None
        batch = self.train.batch()
        scores = fitted.scores(batch)
        if scores is None:
            return None
        block = fitted.block
        block = torch.full((scores.shape[1],), SHARED) if block is None else block
        study = torch.zeros(len(z), dtype=torch.long) if batch.study is None else batch.study
        return matched_correlation(scores, z, block, true_block, study)


def _reference(truth: Any, rows: Batch, study: int) -> Tensor | None:
    """True covariance of a study, or that of its held-out rows."""
    covariance = getattr(truth, "covariance", None)
    if covariance is not None:
        return covariance(study).double()
    if rows.mask is not None or len(rows.x) < 2:
        return None
    return sample_covariance(rows)


def _require_comparable(train: ArrayData, heldout: Batch) -> None:
    if train.x.shape[1] != heldout.x.shape[1]:
        raise ValueError(
            f"train and heldout must have the same features, got {train.x.shape[1]} and "
            f"{heldout.x.shape[1]}."
        )
    for name in ("study", "size_factor"):
        if (getattr(train, name) is None) != (getattr(heldout, name) is None):
            raise ValueError(f"train and heldout must both have {name} or neither.")
    if heldout.study is not None:
        require_known(heldout.study, studies_of(train))


def _require_truth(truth: Any, train: ArrayData) -> None:
    support, z = (getattr(truth, name, None) for name in ("support", "z"))
    if support is not None and len(support) != train.x.shape[1]:
        raise ValueError(
            f"truth.support must have a row for each of {train.x.shape[1]} features, "
            f"got {len(support)}."
        )
    if z is not None and len(z) != len(train):
        raise ValueError(
            f"truth.z must be the factors of the {len(train)} training observations, got {len(z)}; "
            "set it to those, or to None."
        )
