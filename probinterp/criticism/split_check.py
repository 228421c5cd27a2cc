"""Fit to one part of the data and check on the other, once or for many splits."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.holdout import Holdout, Labels, split_groups, split_rows
from probinterp.criticism.parallel import seeded_map, spawn_seeds
from probinterp.criticism.pop_pc import pop_pc
from probinterp.criticism.result import Kind, PopPCResult
from probinterp.criticism.warnings import CriticismWarning

Caught = list[tuple[type[Warning], str]]


class SplitFit(Protocol):
    """How to fit to some units and replicate others."""

    def __call__(
        self, train: Tensor, heldout: Tensor, seed: int
    ) -> tuple[Iterable[PredictiveDraw], Tensor]:
        """Fit to the units ``train``; return draws that replicate ``heldout``, and those data.

        Both arguments are int64 indices of units. Nothing of the held-out values may enter the
        fit. The result must depend on the arguments alone, so that every joblib backend gives the
        same bits; where the backend uses processes, the function must be picklable.
        """
        ...


@dataclass(frozen=True)
class CheckSplit:
    """Fit and check of one split; a class so that processes can be sent it."""

    fit: SplitFit
    discrepancy: Discrepancy
    kind: Kind
    n_reference: int

    def __call__(self, split: Holdout, seed: int) -> tuple[PopPCResult, Caught]:
        """Check of the units that the split holds out, and the warnings it issued."""
        fit_seed, check_seed = spawn_seeds(seed, 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CriticismWarning)
            draws, x_new = self.fit(split.train, split.heldout, fit_seed)
            result = pop_pc(
                draws,
                x_new,
                self.discrepancy,
                kind=self.kind,
                n_reference=self.n_reference,
                seed=check_seed,
                n_obs=split.n_train,
            )
        return result, [(one.category, str(one.message)) for one in caught]


def check_splits(
    check: CheckSplit, design: Sequence[Holdout], *, seed: int, n_jobs: int | None
) -> tuple[PopPCResult, ...]:
    """Check all splits in parallel and issue each category of warnings once."""
    done = seeded_map(check, design, seed=seed, n_jobs=n_jobs)
    number = Counter(category for _, caught in done for category, _ in caught)
    first = {category: text for _, caught in reversed(done) for category, text in caught}
    for category, text in first.items():
        more = f" (One of {number[category]} such warnings.)" if number[category] > 1 else ""
        warnings.warn(text + more, category, stacklevel=3)
    return tuple(result for result, _ in done)


def split_check(
    fit: SplitFit,
    n: int,
    discrepancy: Discrepancy,
    *,
    share: float = 0.5,
    groups: Labels | None = None,
    kind: Kind = "plugin",
    n_reference: int = 32,
    seed: int = 0,
) -> PopPCResult:
    """Population predictive check of one random split.

    The single split check of the literature: the same as :func:`pop_pc` on the parts that
    :func:`split_rows` or :func:`split_groups` give for ``seed``.

    Parameters
    ----------
    fit
        Function ``(train, heldout, seed) -> (draws, x_new)``, see :class:`SplitFit`.
    n
        Number of units.
    discrepancy
        As for :func:`pop_pc`.
    share
        Share of the units, or of the groups, that is held out.
    groups
        Label of each unit, (n,), to hold out whole groups.
    kind, n_reference
        As for :func:`pop_pc`.
    seed
        Seed of split, fit and check.

    Returns
    -------
    PopPCResult
        The check.

    Raises
    ------
    TypeError, ValueError
        As the split and :func:`pop_pc`.

    References
    ----------
    Calibrated model criticism using split predictive checks (Li and Huggins, 2022).
    """
    if groups is None:
        split = split_rows(n, share, seed)
    else:
        require_one_per_unit(groups, n)
        split = split_groups(groups, share, seed)
    check = CheckSplit(fit, discrepancy, kind, n_reference)
    return check_splits(check, [split], seed=seed, n_jobs=1)[0]


def require_one_per_unit(groups: Labels, n: int) -> None:
    """Raise ValueError unless there is one group label per unit."""
    if len(groups) != n:
        raise ValueError(f"groups must have one label per unit, {n}, got {len(groups)}.")


def require_comparable(discrepancy: Discrepancy) -> None:
    """Raise ValueError if the values of a discrepancy belong to units, which splits lack."""
    if getattr(discrepancy, "axis", None) == "unit":
        raise ValueError(
            "several splits need a discrepancy with a scalar or one value per feature or group; "
            f"{getattr(discrepancy, '__name__', discrepancy)!r} has one value per unit, and no "
            "unit is held out twice."
        )
