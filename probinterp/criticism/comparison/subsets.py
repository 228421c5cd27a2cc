"""Rank of one set of sources among all sets of its size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeVar, overload

from probinterp.criticism.comparison.cells import numbers

Key = TypeVar("Key", bound=Hashable)


class SubsetRank(NamedTuple):
    """Where a set stands among others of the same size.

    Parameters
    ----------
    value
        Its value, such as accuracy; more is better.
    rank
        Sets at least as good, itself included.
    n_subsets
        Number of sets.
    best
        The best set (the first of equals).
    best_value, median
        Value of the best and of the middle set.
    complete
        Whether these are all sets; otherwise a random choice of them.
    """

    value: float
    rank: int
    n_subsets: int
    best: Any
    best_value: float
    median: float
    complete: bool

    @property
    def p_value(self) -> float:
        """Share of sets at least as good: descriptive, since layers are not exchangeable."""
        return self.rank / self.n_subsets

    @property
    def smallest_p(self) -> float:
        """Smallest p-value that so many sets can give."""
        return 1 / self.n_subsets

    def __str__(self) -> str:
        which = f"all {self.n_subsets:,} sets" if self.complete else f"{self.n_subsets:,} sets"
        return (
            f"Rank {self.rank:,} among {which} of this size, equal ones counted as better "
            f"(p = {self.p_value:.2g}, smallest "
            f"possible {self.smallest_p:.2g}); value {self.value:.4g}, median {self.median:.4g}, "
            f"best {self.best_value:.4g}."
        )


@overload
def subset_rank(
    values_by_subset: Mapping[Key, Any], attributed: Key, *, complete: bool = True
) -> SubsetRank: ...
@overload
def subset_rank(values_by_subset: Any, attributed: int, *, complete: bool = True) -> SubsetRank: ...
def subset_rank(values_by_subset: Any, attributed: Any, *, complete: bool = True) -> SubsetRank:
    r"""Exact rank of the attributed set among all sets of the same size.

    .. math:: p = \frac{\#\{\text{sets at least as good}\}}{\#\{\text{sets}\}}

    the attributed one included in both, which for a random choice of m further sets is the usual
    :math:`(1 + \#) / (1 + m)`.

    Parameters
    ----------
    values_by_subset
        Value of each set, such as its accuracy: a mapping from sets, or a vector.
    attributed
        The set (or its index in a vector) that an attribution chose.
    complete
        Whether the values are those of all sets.

    Raises
    ------
    KeyError
        If the attributed set has no value.
    ValueError
        If a value is not finite, or they are no vector.
    """
    if isinstance(values_by_subset, Mapping):
        keys = list(values_by_subset)
        values = numbers([float(v) for v in values_by_subset.values()], "values_by_subset")
    else:
        values = numbers(values_by_subset, "values_by_subset")
        keys = list(range(len(values)))
    if values.ndim != 1:
        raise ValueError(f"there must be one value a set, got shape {tuple(values.shape)}.")
    if attributed not in keys:
        raise KeyError(f"set {attributed!r} is not among the {len(keys)} sets with a value.")
    value = values[keys.index(attributed)]
    best = int(values.argmax())
    return SubsetRank(
        value=value.item(),
        rank=int((values >= value).sum()),
        n_subsets=len(keys),
        best=keys[best],
        best_value=values[best].item(),
        median=values.quantile(0.5).item(),
        complete=complete,
    )
