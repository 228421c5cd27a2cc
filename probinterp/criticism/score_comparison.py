"""Which model predicts better: paired differences of held-out scores with their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.holdout import Labels, label_codes
from probinterp.criticism.scores import Score

CLEAR = 2.0  # standard errors at which the sentence calls a difference clear


class ScoreRow(NamedTuple):
    """One model in a comparison; averages over units.

    Parameters
    ----------
    name
        Name of the model.
    mean, standard_error
        Average score and its standard error.
    difference, difference_error
        Average of the paired differences to the best model, <= 0 where large scores are good and
        >= 0 where small ones are, and its standard error.
    z
        Their ratio: 0 for the best model, infinite where the difference is.
    mc_error
        Upper bound of the Monte-Carlo error of ``mean`` from the number of draws: the average of
        the units' errors, which units that share the draws may reach.
    """

    name: str
    mean: float
    standard_error: float
    difference: float
    difference_error: float
    z: float
    mc_error: float


class ScoreComparison(NamedTuple):
    """Models in order of their score, the best first.

    Parameters
    ----------
    score
        Name of the score.
    rows
        One per model.
    differences
        Paired differences of each unit to the best model, in the order of the rows, (M, N).
    n_clusters
        Number of independent clusters that the standard errors rest on; units without groups.
    """

    score: str
    rows: tuple[ScoreRow, ...]
    differences: Tensor
    n_clusters: int

    @property
    def statement(self) -> str:
        """The comparison in one English sentence."""
        best, *others = self.rows
        said = f"{best.name} has the best {self.score}, {best.mean:.4g} per unit"
        return "; ".join([said, *(_against_best(row) for row in others)]) + "."


def _against_best(row: ScoreRow) -> str:
    if math.isnan(row.difference):
        return f"{row.name} cannot be told apart, its score is infinite too"
    if math.isinf(row.difference):
        return f"{row.name} is infinitely worse"
    how = "clearly" if abs(row.z) >= CLEAR else "not clearly"
    return (
        f"{row.name} is {how} worse, by {abs(row.difference):.2g} +- "
        f"{row.difference_error:.2g} (z = {row.z:.2g})"
    )


def compare_scores(scores: Mapping[str, Score], *, groups: Labels | None = None) -> ScoreComparison:
    r"""Compare models by a score of the same held-out units.

    .. math:: \bar\Delta = \frac1N \sum_i \Delta_i, \qquad
        \mathrm{se}^2 = \frac{1}{N^2} \frac{C}{C - 1}
        \sum_{c=1}^C \Big( \sum_{i \in c} (\Delta_i - \bar\Delta) \Big)^2

    with :math:`\Delta_i` the difference of a unit's score to that of the best model and C clusters,
    every unit its own without ``groups``.

    Parameters
    ----------
    scores
        Scores by the name of the model, the same score of the same units in the same order.
    groups
        Label of each unit, (N,), where units of a group (donor, study) are dependent.

    Returns
    -------
    ScoreComparison
        Averages, paired differences to the best, their errors, and a sentence.

    Raises
    ------
    ValueError
        If there are fewer than two models, their scores differ in name or number of units, or
        there are fewer than two units or groups.

    Notes
    -----
    The normal approximation behind z needs about a hundred units (clusters) and is optimistic for
    models that predict almost alike; the best model is chosen by the same data, so that with many
    models z overstates its lead.

    References
    ----------
    Uncertainty in Bayesian leave-one-out cross-validation based model comparison (Sivula et al.,
    2020); A practitioner's guide to cluster-robust inference (Cameron and Miller, 2015).
    """
    values, codes = _checked(scores, groups)
    sign = 1.0 if next(iter(scores.values())).larger_is_better else -1.0
    names = sorted(scores, key=lambda name: -sign * values[name].mean().item())
    best = values[names[0]]
    differences = torch.stack([values[name] - best for name in names])
    rows = []
    for name, difference in zip(names, differences, strict=True):
        gap, error = difference.mean().item(), _clustered_error(difference, codes)
        rows.append(
            ScoreRow(
                name,
                values[name].mean().item(),
                _clustered_error(values[name], codes),
                gap,
                error,
                _ratio(gap, error),
                scores[name].mc_error.mean().item(),
            )
        )
    score = next(iter(scores.values())).name
    return ScoreComparison(score, tuple(rows), differences, int(codes.max()) + 1)


def _ratio(gap: float, error: float) -> float:
    """Difference in standard errors; infinite without an error or where it is infinite itself."""
    if gap == 0 or math.isnan(gap):
        return gap
    return gap / error if error > 0 else math.copysign(math.inf, gap)


def _clustered_error(values: Tensor, codes: Tensor) -> float:
    n_clusters = int(codes.max()) + 1
    sums = values.new_zeros(n_clusters).index_add_(0, codes, values - values.mean())
    variance = sums.square().sum() * n_clusters / (n_clusters - 1)
    return variance.sqrt().item() / len(values)


def _checked(
    scores: Mapping[str, Score], groups: Labels | None
) -> tuple[dict[str, Tensor], Tensor]:
    if len(scores) < 2:
        raise ValueError(f"a comparison needs at least 2 models, got {len(scores)}.")
    if len(kinds := {score.name for score in scores.values()}) > 1:
        raise ValueError(f"the models have different scores: {', '.join(sorted(kinds))}.")
    sizes = {name: len(score.values) for name, score in scores.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the scores must be of the same units, got numbers of units {sizes}.")
    n = next(iter(sizes.values()))
    codes = np.arange(n) if groups is None else label_codes(groups, n, "groups")
    if (n_clusters := int(codes.max(initial=-1)) + 1) < 2:
        what = "units" if groups is None else "groups"
        raise ValueError(f"standard errors need at least 2 {what}, got {n_clusters}.")
    values = {name: score.values.double().cpu() for name, score in scores.items()}
    return values, torch.from_numpy(codes)
