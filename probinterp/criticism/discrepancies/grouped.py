"""Statistics of groups of units, such as studies, donors or schools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy
from probinterp.criticism.discrepancies.moments import interpolated_quantile, require_probability
from probinterp.criticism.discrepancies.placement import Placed
from probinterp.criticism.draws import Discrepancy, PredictiveDraw
from probinterp.criticism.holdout import label_codes

GroupLabels = Sequence[Any] | np.ndarray | Tensor


class Groups:
    """Which units belong together.

    Parameters
    ----------
    groups
        Label of the group of every unit, shape (N,): numbers or strings.
    labels
        Names of the M groups in the sorted order of their labels; default the labels themselves.

    Raises
    ------
    ValueError
        If ``groups`` is empty, not one-dimensional or has missing labels, or ``labels`` has another
        length than M.
    """

    def __init__(self, groups: GroupLabels, labels: Sequence[str] | None = None) -> None:
        array = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(
                f"groups must hold one label per unit, shape (N,), got shape {array.shape}."
            )
        codes = label_codes(array, len(array), "groups")
        found, sizes = np.unique(array, return_counts=True)
        if labels is not None and len(labels) != len(found):
            raise ValueError(f"labels must name the {len(found)} groups, got {len(labels)} names.")
        self.labels = tuple(str(label) for label in (found if labels is None else labels))
        self.n_units = len(array)
        self._codes = Placed(torch.as_tensor(codes))
        self._sizes = Placed(torch.as_tensor(sizes, dtype=torch.float64))
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(sizes)[:-1]
        self._rows = [Placed(torch.as_tensor(rows)) for rows in np.split(order, ends)]

    def rows(self, x: Tensor) -> list[Tensor]:
        """Indices of the units of each group, for data ``x`` (N, G)."""
        self._require_fit(x)
        return [rows.beside(x) for rows in self._rows]

    def means(self, x: Tensor) -> Tensor:
        """Mean of all entries of each group, shape (M,)."""
        self._require_fit(x)
        sums = x.new_zeros(len(self.labels)).index_add(0, self._codes.beside(x), x.mean(1))
        return sums / self._sizes.beside(x)

    def _require_fit(self, x: Tensor) -> None:
        if x.shape[0] != self.n_units:
            raise ValueError(
                f"groups holds the labels of {self.n_units} units, the data have {x.shape[0]}."
            )


def grand_mean(groups: GroupLabels) -> Discrepancy:
    r"""Make the statistic "mean of the group means", every group with the same weight.

    .. math:: d(x) = \frac1M \sum_m \bar x_m

    Equals :func:`mean` when all groups have the same size.

    Parameters
    ----------
    groups
        Label of the group of every unit, shape (N,).

    Returns
    -------
    Discrepancy
        A scalar statistic called ``grand_mean``.
    """
    known = Groups(groups)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return known.means(x).mean()

    return discrepancy(statistic, name="grand_mean")


def maximum_of_group_means(groups: GroupLabels) -> Discrepancy:
    r"""Make the statistic "largest group mean", :math:`\max_m \bar x_m`.

    Parameters
    ----------
    groups
        Label of the group of every unit, shape (N,).

    Returns
    -------
    Discrepancy
        A scalar statistic called ``maximum_of_group_means``.
    """
    known = Groups(groups)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return known.means(x).amax()

    return discrepancy(statistic, name="maximum_of_group_means")


def quantile_of_group_means(groups: GroupLabels, q: float = 0.75) -> Discrepancy:
    r"""Make the statistic "q-quantile of the group means", interpolated linearly.

    Looks at the upper level of a hierarchy: how the groups differ.

    Parameters
    ----------
    groups
        Label of the group of every unit, shape (N,).
    q
        Probability in [0, 1].

    Returns
    -------
    Discrepancy
        A scalar statistic called ``quantile_of_group_means(q)``.

    Raises
    ------
    ValueError
        If ``q`` lies outside [0, 1].

    References
    ----------
    Calibrated model criticism using split predictive checks (Li and Huggins, 2022), the
    hierarchical examples.
    """
    require_probability(q)
    known = Groups(groups)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return interpolated_quantile(known.means(x), q)

    return discrepancy(statistic, name=f"quantile_of_group_means({q:g})")


def mean_of_group_quantiles(groups: GroupLabels, q: float = 0.75) -> Discrepancy:
    r"""Make the statistic "mean over groups of the q-quantile of their entries".

    Looks at the lower level of a hierarchy: how the members of a group differ.

    Parameters
    ----------
    groups
        Label of the group of every unit, shape (N,).
    q
        Probability in [0, 1].

    Returns
    -------
    Discrepancy
        A scalar statistic called ``mean_of_group_quantiles(q)``.

    Raises
    ------
    ValueError
        If ``q`` lies outside [0, 1].

    References
    ----------
    Calibrated model criticism using split predictive checks (Li and Huggins, 2022), the
    hierarchical examples.
    """
    require_probability(q)
    known = Groups(groups)

    def statistic(x: Tensor, draw: PredictiveDraw) -> Tensor:
        each = [interpolated_quantile(x.index_select(0, rows), q) for rows in known.rows(x)]
        return torch.stack(each).mean()

    return discrepancy(statistic, name=f"mean_of_group_quantiles({q:g})")
