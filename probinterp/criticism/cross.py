"""Cross-validated predictive checks: every unit is held out once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from probinterp.criticism.draws import Discrepancy
from probinterp.criticism.findings import Finding, merged_notes, stacked
from probinterp.criticism.holdout import Holdout, Labels, k_fold
from probinterp.criticism.result import Kind, PopPCResult
from probinterp.criticism.split_check import (
    CheckSplit,
    SplitFit,
    check_splits,
    require_comparable,
)
from probinterp.criticism.verdict import Verdict

DEPENDENCE = (
    "The p-values of the folds are dependent, since the fits share most of their data: their "
    "distribution over folds is not a test of uniformity."
)


class CrossResult(NamedTuple):
    r"""Predictive checks of K folds; shapes (...) are those of the discrepancy.

    Parameters
    ----------
    folds
        The check of each fold.
    design
        What each fold held out.
    seed
        Seed of folds, fits and checks.

    References
    ----------
    Combining p-values via averaging (Vovk and Wang, 2020).
    """

    folds: tuple[PopPCResult, ...]
    design: tuple[Holdout, ...]
    seed: int

    @property
    def p_value(self) -> Tensor:
        """Share of replicates at least as extreme, for each fold, shape (K, ...)."""
        return stacked([fold.p_value for fold in self.folds])

    @property
    def p_randomised(self) -> Tensor:
        """The same with ties broken at random, shape (K, ...)."""
        return stacked([fold.p_randomised for fold in self.folds])

    @property
    def p_two_sided(self) -> Tensor:
        """Two-sided p-value of each fold, shape (K, ...)."""
        return stacked([fold.p_two_sided for fold in self.folds])

    @property
    def z(self) -> Tensor:
        """Effect size of each fold in sd of its replicates, shape (K, ...)."""
        return stacked([fold.z for fold in self.folds])

    @property
    def mean_p(self) -> Tensor:
        """Average of ``p_randomised`` over folds, shape (...).

        Not a p-value: under a correct model it concentrates at 1/2.
        """
        return self.p_randomised.mean(0)

    @property
    def mean_z(self) -> Tensor:
        """Average effect size over folds, shape (...)."""
        return self.z.mean(0)

    @property
    def p_pooled(self) -> Tensor:
        r"""One p-value for all folds, shape (...): twice the average two-sided p-value.

        .. math:: \min\Big(1, \frac2K \sum_k p_k\Big)

        Pr(p <= a) <= a under any dependence of the folds, and so conservative; misfit that every
        fold shows is found, misfit of one fold is not (look at ``p_two_sided``).
        """
        return (2 * self.p_two_sided.mean(0)).clamp(max=1)

    @property
    def calibrated(self) -> bool:
        """Whether no fold has something that makes its p-value non-uniform."""
        return all(fold.calibrated for fold in self.folds)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, in sentences."""
        return (DEPENDENCE, *merged_notes(self.folds))

    def verdict(self, alpha: float = 0.05) -> Verdict:
        """Say in one sentence what the folds show together, from ``p_pooled``.

        Raises
        ------
        ValueError
            If ``alpha`` does not lie between 0 and 1.
        """
        resolution = max(4 / (fold.n_draws + 1) for fold in self.folds)
        name = "twice the average two-sided p"
        finding = Finding(self.folds, "folds", self.p_pooled, name, self.mean_z, resolution)
        return finding.verdict(alpha)


def cross_pop_pc(
    fit: SplitFit,
    n: int,
    discrepancy: Discrepancy,
    *,
    k: int = 5,
    groups: Labels | None = None,
    kind: Kind = "plugin",
    n_reference: int = 32,
    seed: int = 0,
    n_jobs: int | None = None,
) -> CrossResult:
    """Hold out each of K folds in turn, fit to the others, and check.

    Parameters
    ----------
    fit
        Function ``(train, heldout, seed) -> (draws, x_new)``, see :class:`SplitFit`; called once
        per fold.
    n
        Number of units.
    discrepancy
        A scalar, or one value per feature, as for :func:`pop_pc`.
    k
        Number of folds, K.
    groups
        Label of each unit, (n,): a group is never divided between folds.
    kind, n_reference
        As for :func:`pop_pc`.
    seed
        Seed of folds, fits and checks; the same bits on every joblib backend.
    n_jobs
        Folds at a time, as in ``joblib.Parallel``; ``joblib.parallel_config`` chooses where.

    Returns
    -------
    CrossResult
        The check of each fold, averages, and a pooled p-value.

    Raises
    ------
    TypeError, ValueError
        As :func:`k_fold` and :func:`pop_pc`, and for one value per unit.

    Warns
    -----
    CriticismWarning
        As :func:`pop_pc`, each category once for all folds.

    Notes
    -----
    Any two fits share all but two folds of the data, so the K p-values are dependent. They are
    reported as they are; a test of their uniformity, as of the p-values of
    :func:`divided_check`, would be wrong.

    References
    ----------
    Holdout predictive checks for Bayesian model criticism (Moran, Blei and Ranganath, 2024).
    """
    require_comparable(discrepancy)
    design = k_fold(n, k, seed, groups)
    check = CheckSplit(fit, discrepancy, kind, n_reference)
    folds = check_splits(check, design, seed=seed, n_jobs=n_jobs)
    return CrossResult(folds, design, seed)
