"""Whether factors come back when a model is fitted again from other seeds and other samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probinterp.inference.data import ArrayData, Data, as_batch
from probinterp.inference.posterior import Factors, factors
from probinterp.inference.svi import fit
from probinterp.models.base import ProbabilisticModel

SAME_FACTOR = 0.7  # |correlation| of scores from which on two columns count as the same factor


class Stability(NamedTuple):
    r"""How well the factors of a reference model come back in refits.

    Attributes
    ----------
    reference
        Factors of the reference model, K of them.
    correlation
        :math:`|r|` of the scores of each reference factor with those of its match in every refit,
        over all observations of its block, (R, K); 0 without a match.
    jaccard
        Overlap of the supports, intersection over union, (R, K).
    same_block
        Whether the match lies in the same block, (R, K).
    recovered
        Share of refits with a match in the same block whose scores correlate with
        :math:`|r| \ge 0.7`, (K,): the stability score.
    inclusion
        Share of those refits in which a feature belongs to the factor, (G, K).
    """

    reference: Factors
    correlation: Tensor
    jaccard: Tensor
    same_block: Tensor
    recovered: Tensor
    inclusion: Tensor

    def stable(self, threshold: float = 0.8) -> Tensor:
        """Which factors come back in at least this share of the refits, (K,) boolean."""
        return self.recovered >= threshold

    def consensus_support(self, threshold: float = 0.5) -> Tensor:
        """Features that belong to a factor in at least this share of refits, (G, K) boolean."""
        return self.inclusion >= threshold


def stability(
    fit_model: Callable[[Data, int], ProbabilisticModel],
    data: ArrayData,
    reference: ProbabilisticModel,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    subsample: float | None = 0.8,
    n_jobs: int = 1,
) -> Stability:
    """Fit again and match the factors to those of a reference model.

    Columns are matched one to one by the correlation of their scores on all of ``data``. A factor
    that a refit puts into another block counts as not recovered.

    Parameters
    ----------
    fit_model
        Function of training data and a seed that makes and fits a model; see
        :func:`refitting`.
    data
        All observations.
    reference
        Model fitted to all of them.
    seeds
        One refit for each, R.
    subsample
        Share of the observations of every study that a refit sees, drawn without replacement;
        None for all of them, so that only the seed differs.
    n_jobs
        Refits at the same time, by joblib.

    Raises
    ------
    ValueError
        If there is no seed, or ``subsample`` does not lie in (0, 1).

    References
    ----------
    Stability selection (Meinshausen and Bühlmann, 2010), for the subsamples.
    """
    if len(seeds) == 0:
        raise ValueError("stability needs at least one seed, got none.")
    if subsample is not None and not 0 < subsample < 1:
        raise ValueError(f"subsample must lie in (0, 1) or be None, got {subsample}.")
    found = factors(reference, data)
    refits = Parallel(n_jobs=n_jobs)(
        delayed(_refit)(fit_model, data, seed, subsample) for seed in seeds
    )
    study = as_batch(data).study
    matches = [match_factors(found, refit, study) for refit in refits]
    correlation, partner = (torch.stack(part) for part in zip(*matches, strict=True))
    overlaps, blocks, included = [], [], torch.zeros(_support(found).shape)
    n_same = torch.zeros(len(found.columns))
    for refit, r, mine in zip(refits, correlation, partner, strict=True):
        overlap, same, support = _compare(found, refit, mine)
        recovered = same & (r >= SAME_FACTOR)
        included += support * recovered
        n_same += recovered
        overlaps.append(overlap)
        blocks.append(same)
    return Stability(
        found,
        correlation,
        torch.stack(overlaps),
        torch.stack(blocks),
        n_same / len(seeds),
        included / n_same.clamp_min(1),
    )


def refitting(
    make_model: Callable[[], ProbabilisticModel],
    then: Callable[[ProbabilisticModel, Data], ProbabilisticModel] | None = None,
    **fit_options: Any,
) -> Callable[[Data, int], ProbabilisticModel]:
    """Function of data and a seed that makes and fits a model, for :func:`stability`.

    Parameters
    ----------
    make_model
        Makes a new model.
    then
        What to do after the fit, such as mending its blocks.
    **fit_options
        Passed to :func:`probinterp.fit`.
    """

    def run(data: Data, seed: int) -> ProbabilisticModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = make_model()
        fit(model, data, seed=seed, **({"progress": False} | fit_options))
        return model if then is None else then(model, data)

    return run


def match_factors(first: Factors, second: Factors, study: Tensor | None) -> tuple[Tensor, Tensor]:
    """Match columns one to one by the absolute correlation of their scores.

    The scores of a factor of one study are compared over the observations of that study.

    Returns
    -------
    tuple of Tensor
        Correlation of each first factor with its match, (K,), 0 without one; and the position of
        the match among the second factors, (K,), -1 without one.
    """
    size = torch.zeros(len(first.columns), len(second.columns))
    for k in range(len(first.columns)):
        rows: slice | Tensor = slice(None)
        if study is not None and first.block is not None and int(first.block[k]) >= 0:
            rows = study.cpu() == first.block[k]
        size[k] = _correlations(first.scores[rows, k], second.scores[rows])
    mine, theirs = linear_sum_assignment(-size.numpy())
    correlation, partner = torch.zeros(len(size)), torch.full((len(size),), -1)
    correlation[mine], partner[mine] = size[mine, theirs], torch.from_numpy(theirs)
    return correlation, partner


def _refit(
    fit_model: Callable[[Data, int], ProbabilisticModel],
    data: ArrayData,
    seed: int,
    subsample: float | None,
) -> Factors:
    part = data
    if subsample is not None:
        generator = np.random.default_rng(seed)
        label = np.zeros(len(data)) if data.study is None else data.study.numpy()
        kept = [
            generator.choice(rows, max(2, round(subsample * len(rows))), replace=False)
            for rows in (np.flatnonzero(label == value) for value in np.unique(label))
        ]
        part = data.subset(torch.from_numpy(np.sort(np.concatenate(kept))))
    return factors(fit_model(part, seed), data)


def _correlations(one: Tensor, many: Tensor) -> Tensor:
    one, many = one - one.mean(0), many - many.mean(0)
    scale = one.norm() * many.norm(dim=0)
    return ((one @ many) / scale.clamp_min(torch.finfo(many.dtype).eps)).abs()


def _support(found: Factors) -> Tensor:
    support = found.support
    if support is None:
        raise ValueError("stability compares supports, and this model has no loadings.")
    return support


def _compare(first: Factors, second: Factors, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap of supports, whether blocks agree, and the matched supports (G, K)."""
    matched = partner >= 0
    theirs = _support(second)[:, partner.clamp_min(0)] & matched
    mine = _support(first)
    either = (mine | theirs).sum(0).clamp_min(1)
    same = matched
    if first.block is not None and second.block is not None:
        same = matched & (first.block == second.block[partner.clamp_min(0)])
    return (mine & theirs).sum(0) / either, same, theirs
