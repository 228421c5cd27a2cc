"""What is held out: seeded designs that say which rows, groups, columns or entries they keep back.

================  =========================  ===================================================
design            held out                   what a check of it asks
================  =========================  ===================================================
``split_rows``    new units                  the whole model, for units not seen before
``split_groups``  whole groups               the group level: new donors, studies, documents
``split_within``  some units of every group  units of groups that are known
``k_fold``        each unit once             the same, K times over
``cap_rows``      few of the held-out units  the same, where parameters are point estimates
================  =========================  ===================================================

Designs that hold out parts of every unit are in :mod:`probinterp.criticism.holdout_entries`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Labels = Sequence[object] | NDArray[np.generic] | Tensor
Indices = NDArray[np.int64]


class Holdout(NamedTuple):
    """Which units (or features) a fit may see and which are kept back.

    Parameters
    ----------
    design
        Name of the design.
    seed
        Seed that it was drawn with.
    share
        Share that was asked for: of units, groups or features, as the design says.
    train, heldout
        Indices, int64, sorted, without a common element.
    """

    design: str
    seed: int
    share: float
    train: Tensor
    heldout: Tensor

    @property
    def n_train(self) -> int:
        """Number of units or features that the fit may see."""
        return len(self.train)

    @property
    def n_heldout(self) -> int:
        """Number of units or features that are kept back."""
        return len(self.heldout)


def split_rows(n: int, share: float, seed: int, strata: Labels | None = None) -> Holdout:
    r"""Hold out :math:`\lceil \mathrm{share} \cdot n \rceil` units at random.

    Parameters
    ----------
    n
        Number of units, at least 2.
    share
        Share of the units that is held out, in (0, 1).
    seed
        Seed of the random choice.
    strata
        Label of each unit, (n,): every label has the same share in both parts, as nearly as
        whole units allow.

    Returns
    -------
    Holdout
        Design ``"rows"``, or ``"rows, stratified"``.

    Raises
    ------
    ValueError
        If a part would be empty, or has fewer units than there are strata.
    """
    n_heldout = size_heldout(n, share, "rows")
    random = np.random.default_rng(seed)
    if strata is None:
        return _holdout("rows", seed, share, random.permutation(n)[:n_heldout], n)
    codes = label_codes(strata, n, "strata")
    sizes = np.bincount(codes)
    if (smaller := min(n_heldout, n - n_heldout)) < len(sizes):
        part = "held-out" if n_heldout <= n - n_heldout else "training"
        raise ValueError(f"{smaller} {part} rows cannot cover {len(sizes)} strata.")
    # Rounding the running total keeps every stratum within one unit of its share and the sum
    # exact; the random order spares the last strata from always being rounded the same way.
    order = random.permutation(len(sizes))
    total = np.rint(np.cumsum(sizes[order]) * (n_heldout / n)).astype(np.int64)
    quota = np.empty_like(sizes)
    quota[order] = np.diff(total, prepend=0)
    return _holdout("rows, stratified", seed, share, _from_each(codes, quota, random), n)


def split_groups(groups: Labels, share: float, seed: int) -> Holdout:
    r"""Hold out :math:`\lceil \mathrm{share} \cdot I \rceil` of the I groups, with all their units.

    Parameters
    ----------
    groups
        Label of each unit, (N,), at least two different ones.
    share
        Share of the *groups* that is held out, in (0, 1).
    seed
        Seed of the random choice.

    Returns
    -------
    Holdout
        Design ``"groups"``: the units of the groups; at least one group on each side.

    Raises
    ------
    ValueError
        If there are fewer than two groups, or none would be left for the fit.
    """
    codes = label_codes(groups, len(groups), "groups")
    n_groups = int(codes.max()) + 1
    n_heldout = size_heldout(n_groups, share, "groups")
    chosen = np.random.default_rng(seed).permutation(n_groups)[:n_heldout]
    return _holdout("groups", seed, share, np.flatnonzero(np.isin(codes, chosen)), len(codes))


def split_within(groups: Labels, share: float, seed: int) -> Holdout:
    """Hold out some units of every group: new items of groups that the fit has seen.

    Parameters
    ----------
    groups
        Label of each unit, (N,).
    share
        Share of the units of each group that is held out, in (0, 1); rounded to whole units, at
        least one on each side.
    seed
        Seed of the random choice.

    Returns
    -------
    Holdout
        Design ``"within groups"``.

    Raises
    ------
    ValueError
        If a group has a single unit, which cannot be on both sides.
    """
    require_share(share)
    codes = label_codes(groups, len(groups), "groups")
    sizes = np.bincount(codes)
    if (single := int((sizes < 2).sum())) > 0:
        raise ValueError(
            f"{single} of {len(sizes)} groups have a single unit, which cannot be on both sides; "
            "merge or drop them."
        )
    quota = np.clip(np.rint(share * sizes), 1, sizes - 1).astype(np.int64)
    heldout = _from_each(codes, quota, np.random.default_rng(seed))
    return _holdout("within groups", seed, share, heldout, len(codes))


def k_fold(n: int, k: int, seed: int, groups: Labels | None = None) -> tuple[Holdout, ...]:
    """Divide the units into K folds and hold out each in turn.

    Parameters
    ----------
    n
        Number of units.
    k
        Number of folds, K, from 2 to the number of units or groups.
    seed
        Seed of the random division.
    groups
        Label of each unit, (n,): a group is never divided. The folds then have nearly equal
        numbers of units: the largest group first, each goes to the smallest fold so far.

    Returns
    -------
    tuple of Holdout
        One per fold, design ``"k-fold"`` or ``"k-fold of groups"``; the held-out parts are a
        partition of the units.

    Raises
    ------
    ValueError
        If ``k`` is out of range.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        _require_folds(k, n, "units")
        fold = np.empty(n, np.int64)
        fold[random.permutation(n)] = np.arange(n) % k
        design = "k-fold"
    else:
        codes = label_codes(groups, n, "groups")
        _require_folds(k, int(codes.max()) + 1, "groups")
        fold = _fold_of_group(np.bincount(codes), k, random)[codes]
        design = "k-fold of groups"
    return tuple(_holdout(design, seed, 1 / k, np.flatnonzero(fold == j), n) for j in range(k))


def cap_rows(n_new: int, n_obs: int, seed: int, *, share: float = 0.1) -> Tensor:
    r"""Choose at most :math:`\lfloor \mathrm{share} \cdot n_{obs} \rfloor` held-out rows at random.

    A check of point-estimated parameters is nearly calibrated while the held-out set is small
    against that of the fit: the variance of the effect size is inflated by
    :math:`1 + n_{new} / n_{obs}`. The price is power.

    Parameters
    ----------
    n_new, n_obs
        Numbers of held-out units and of units of the fit.
    seed
        Seed of the choice.
    share
        Largest share of ``n_obs``, in (0, 1).

    Returns
    -------
    Tensor
        Indices in increasing order, all of them where they are few enough; at least one.

    Raises
    ------
    ValueError
        If a size is below 1 or the share lies outside (0, 1).
    """
    for name, size in {"n_new": n_new, "n_obs": n_obs}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    require_share(share)
    kept = min(n_new, max(1, math.floor(share * n_obs)))
    chosen = np.random.default_rng(seed).permutation(n_new)[:kept]
    return torch.from_numpy(np.sort(chosen))


def size_heldout(n: int, share: float, what: str) -> int:
    """Number of things out of ``n`` that are held out; at least one is on each side.

    Raises
    ------
    ValueError
        If that is impossible.
    """
    require_share(share)
    if n < 2:
        raise ValueError(f"a split needs at least 2 {what}, got {n}.")
    # an excess of 1e-9 is rounding error of the product, not a reason for one more
    n_heldout = math.ceil(share * n - 1e-9)
    if n_heldout >= n:
        raise ValueError(f"share={share} of {n} {what} leaves none for the fit.")
    return n_heldout


def require_share(share: float) -> None:
    """Raise ValueError unless the share lies strictly between 0 and 1."""
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share}.")


def label_codes(labels: Labels, n: int, name: str) -> Indices:
    """Integer code of each label, from 0 in the order of the sorted labels.

    Raises
    ------
    ValueError
        If there is not one label per unit, or one is missing.
    """
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"{name} must have one label per unit, shape ({n},), got {values.shape}.")
    if n == 0:
        raise ValueError(f"{name} is empty.")
    missing = sum(label is None or label != label for label in values.tolist())
    if missing:
        raise ValueError(f"{name} is missing (None or NaN) for {missing} of {n} units.")
    return np.unique(values, return_inverse=True)[1].reshape(n).astype(np.int64)


def _require_folds(k: int, n: int, what: str) -> None:
    if not 2 <= k <= n:
        raise ValueError(f"k must lie between 2 and the number of {what}, {n}, got {k}.")


def _fold_of_group(sizes: Indices, k: int, random: np.random.Generator) -> Indices:
    order = random.permutation(len(sizes))  # so that groups of one size come in random order
    order = order[np.argsort(-sizes[order], kind="stable")]
    load = np.zeros(k, np.int64)
    fold = np.empty(len(sizes), np.int64)
    for group in order:
        fold[group] = load.argmin()
        load[fold[group]] += sizes[group]
    return fold


def _from_each(codes: Indices, quota: Indices, random: np.random.Generator) -> Indices:
    """Choose ``quota[c]`` of the units with code c at random."""
    order = random.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    first = np.cumsum(np.bincount(codes)) - np.bincount(codes)
    rank = np.arange(len(codes)) - first[codes[order]]
    return order[rank < quota[codes[order]]]


def _holdout(design: str, seed: int, share: float, heldout: Indices, n: int) -> Holdout:
    kept = np.ones(n, bool)
    kept[heldout] = False
    train, rest = np.flatnonzero(kept), np.flatnonzero(~kept)
    return Holdout(design, seed, share, torch.from_numpy(train), torch.from_numpy(rest))
