"""One discrepancy, evaluated at every feature, every unit or every group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probinterp.criticism.discrepancies.custom import discrepancy, name_of
from probinterp.criticism.discrepancies.grouped import GroupLabels, Groups
from probinterp.criticism.discrepancies.parts import COLUMNS, ROWS, Part, Whole
from probinterp.criticism.draws import Discrepancy, PredictiveDraw

CHUNK = 256  # parts that are evaluated together; bounds the memory of what a function makes of one


def per_feature(function: Discrepancy, labels: Sequence[str] | None = None) -> Discrepancy:
    r"""Evaluate a scalar discrepancy at every feature by itself.

    .. math:: d_j(x, \theta) = d\big(x_{\cdot j}, \theta\big), \qquad x_{\cdot j} \in R^{N \times 1}

    The likelihood is computed once, from all features; each feature is scored by its marginal
    given z, which is a term of the log density when the features are independent given z.

    Parameters
    ----------
    function
        Scalar discrepancy.
    labels
        Names of the G features.

    Returns
    -------
    Discrepancy
        Values of shape (G,), with ``axis`` "feature", called ``per_feature(<name>)``.

    Raises
    ------
    ValueError
        When called, if ``function`` does not return a scalar.
    TypeError
        When called, if ``function`` scores the data and the likelihood has no marginals.
    """

    def each(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return _at_every(function, x, draw, COLUMNS)

    return discrepancy(each, name=_wrapped("per_feature", function), axis="feature", labels=labels)


def per_unit(function: Discrepancy, labels: Sequence[str] | None = None) -> Discrepancy:
    r"""Evaluate a scalar discrepancy at every unit by itself.

    .. math:: d_i(x, \theta) = d\big(x_{i \cdot}, \theta\big), \qquad x_{i \cdot} \in R^{1 \times G}

    The likelihood is computed once, from all units. Whatever compares units (a variance, a
    correlation between features) is 0 for a single one.

    Parameters
    ----------
    function
        Scalar discrepancy.
    labels
        Names of the N units.

    Returns
    -------
    Discrepancy
        Values of shape (N,), with ``axis`` "unit", called ``per_unit(<name>)``.

    Raises
    ------
    ValueError
        When called, if ``function`` does not return a scalar.
    """

    def each(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return _at_every(function, x, draw, ROWS)

    name = _wrapped("per_unit", function)
    return discrepancy(each, name=name, axis="unit", labels=labels)


def per_group(
    function: Discrepancy, groups: GroupLabels, labels: Sequence[str] | None = None
) -> Discrepancy:
    r"""Evaluate a scalar discrepancy at every group of units by itself.

    .. math:: d_m(x, \theta) = d\big((x_i)_{i: g_i = m}, \theta\big)

    The likelihood is computed once, from all units.

    Parameters
    ----------
    function
        Scalar discrepancy.
    groups
        Label of the group of every unit, shape (N,), such as the study.
    labels
        Names of the M groups in the sorted order of their labels; default the labels themselves.

    Returns
    -------
    Discrepancy
        Values of shape (M,), with ``axis`` "group" and the names of the groups as ``labels``,
        called ``per_group(<name>)``.

    Raises
    ------
    ValueError
        If ``groups`` or ``labels`` does not fit; when called, if the data have another number of
        units or ``function`` does not return a scalar.
    """
    known = Groups(groups, labels)

    def each(x: Tensor, draw: PredictiveDraw) -> Tensor:
        return _at_groups(function, known, x, draw)

    name = _wrapped("per_group", function)
    return discrepancy(each, name=name, axis="group", labels=known.labels)


def group_gap(function: Discrepancy, groups: GroupLabels) -> Discrepancy:
    r"""Make the discrepancy "how much worse the worst group is than the average group".

    .. math:: d(x, \theta) = \max_m d_m(x, \theta) - \frac1M \sum_m d_m(x, \theta)

    For instance ``group_gap(mean_negative_log_likelihood, study)``: a study that the model fits
    less well than the others.

    Parameters
    ----------
    function
        Scalar discrepancy of which large values are bad.
    groups
        Label of the group of every unit, shape (N,).

    Returns
    -------
    Discrepancy
        A scalar >= 0 called ``group_gap(<name>)``; 0 for a single group.

    Raises
    ------
    ValueError
        As for :func:`per_group`.
    """
    known = Groups(groups)

    def gap(x: Tensor, draw: PredictiveDraw) -> Tensor:
        values = _at_groups(function, known, x, draw)
        return values.amax() - values.mean()

    return discrepancy(gap, name=_wrapped("group_gap", function))


def _wrapped(wrapper: str, function: Discrepancy) -> str:
    """Name of a wrapped discrepancy; TypeError unless it is a function."""
    if not callable(function):
        raise TypeError(
            f"{wrapper} needs a discrepancy, a function of x and a draw, "
            f"got {type(function).__name__}."
        )
    return f"{wrapper}({name_of(function)})"


def _at_groups(function: Discrepancy, groups: Groups, x: Tensor, draw: PredictiveDraw) -> Tensor:
    whole = Whole(x, draw)
    return torch.stack([_at(function, whole, rows, ROWS) for rows in groups.rows(x)])


def _at_every(function: Discrepancy, x: Tensor, draw: PredictiveDraw, dim: int) -> Tensor:
    whole = Whole(x, draw)
    parts = torch.arange(x.shape[dim], device=x.device).unsqueeze(1)
    # The first part is evaluated alone: what it asks of the likelihood is computed there, once.
    first = _at(function, whole, parts[0], dim)
    try:
        at_one = torch.vmap(lambda index: _at(function, whole, index, dim), chunk_size=CHUNK)
        return at_one(parts)
    except (RuntimeError, ValueError, TypeError):  # control flow that depends on the data
        return torch.stack([first, *(_at(function, whole, index, dim) for index in parts[1:])])


def _at(function: Discrepancy, whole: Whole, index: Tensor, dim: int) -> Tensor:
    part = Part(whole, index, dim)
    value = function(part.x, part)
    if not isinstance(value, Tensor) or value.ndim > 0:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name_of(function)} must return a scalar tensor to be evaluated part by part, "
            f"got {got}."
        )
    return value
