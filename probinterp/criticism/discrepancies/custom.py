"""Discrepancies of one's own: name them, say what their values refer to, check them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from probinterp.criticism.draws import Discrepancy, PredictiveDraw

Axis = Literal["feature", "unit", "group"]


@overload
def discrepancy(
    function: Discrepancy,
    *,
    name: str | None = None,
    axis: Axis | None = None,
    labels: Sequence[str] | None = None,
) -> Discrepancy: ...
@overload
def discrepancy(
    function: None = None,
    *,
    name: str | None = None,
    axis: Axis | None = None,
    labels: Sequence[str] | None = None,
) -> Callable[[Discrepancy], Discrepancy]: ...
def discrepancy(
    function: Discrepancy | None = None,
    *,
    name: str | None = None,
    axis: Axis | None = None,
    labels: Sequence[str] | None = None,
) -> Discrepancy | Callable[[Discrepancy], Discrepancy]:
    """Make a discrepancy of a function, as a call or as a decorator.

    Parameters
    ----------
    function
        Pure function of data ``x`` (N, G) and a draw that returns a scalar or a vector in
        floating point. None where the decorator is written with arguments.
    name
        What results and figures call it; default the function's own name.
    axis
        What the values of a vector stand for: ``"feature"``, ``"unit"`` or ``"group"``.
    labels
        Names of the values of a vector, for instance of the genes.

    Returns
    -------
    Discrepancy
        The function with attributes ``__name__``, ``axis`` and ``labels``. Each call checks type,
        shape and dtype of what it returns; :func:`check_discrepancy` checks the rest once.

    Raises
    ------
    TypeError
        If ``function`` cannot be called.
    ValueError
        If ``axis`` is unknown, or there are labels without an axis.

    Examples
    --------
    >>> import torch
    >>> spread = discrepancy(lambda x, draw: x.amax() - x.amin(), name="range")
    >>> spread(torch.tensor([[1.0, 4.0]]), None)
    tensor(3.)
    >>> @discrepancy(axis="feature")
    ... def median(x, draw):
    ...     return x.median(0).values
    >>> median.__name__, median.axis
    ('median', 'feature')
    """
    if axis is not None and axis not in get_args(Axis):
        raise ValueError(f"axis must be one of {', '.join(get_args(Axis))} or None, got {axis!r}.")
    if labels is not None and axis is None:
        raise ValueError("labels name the values of a vector; say with axis= what they stand for.")
    if function is None:
        return functools.partial(discrepancy, name=name, axis=axis, labels=labels)
    if not callable(function):
        raise TypeError(
            f"a discrepancy is a function of x and a draw, got a {type(function).__name__}."
        )
    called = name_of(function) if name is None else name
    return _with_attributes(function, called, axis, None if labels is None else tuple(labels))


def name_of(function: Discrepancy) -> str:
    """What a discrepancy is called."""
    return getattr(function, "__name__", type(function).__name__)


def _with_attributes(
    function: Discrepancy, name: str, axis: Axis | None, labels: tuple[str, ...] | None
) -> Discrepancy:
    @functools.wraps(function)
    def checked(x: Tensor, draw: PredictiveDraw) -> Tensor:
        value = _require_values(function(x, draw), name)
        if labels is not None and value.numel() != len(labels):
            raise ValueError(f"{name} has {len(labels)} labels for {value.numel()} values.")
        return value

    checked.__name__ = name
    for attribute, content in (("axis", axis), ("labels", labels)):
        if content is not None:
            setattr(checked, attribute, content)
    return checked


def _require_values(value: object, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a torch.Tensor, got {type(value).__name__}.")
    if value.ndim > 1 or value.numel() == 0:
        raise ValueError(
            f"{name} must return a scalar or a vector with at least one value, "
            f"got shape {tuple(value.shape)}."
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must return floating point numbers, got {value.dtype}.")
    return value


def check_discrepancy(function: Discrepancy, x: Tensor, draw: PredictiveDraw) -> Tensor:
    """Verify on one data set that a function can serve as a discrepancy.

    It must be pure (the same value twice, the data and torch's random state left alone) and
    return finite or infinite numbers in the right shape, on the device of the data.

    Parameters
    ----------
    function
        The function to verify.
    x
        Data, shape (N, G), or (N, ...) where a unit is an array; floating point.
    draw
        A draw whose likelihood takes ``x``.

    Returns
    -------
    Tensor
        Its value, for a look.

    Raises
    ------
    TypeError
        If the data or the value are no tensor of floating point numbers.
    ValueError
        If ``x`` has no units and features, if the value has the wrong shape, length or device or
        contains NaN, if it differs between two calls, or if the function changed its data or drew
        random numbers.
    """
    name = name_of(function)
    _require_data(x)
    given, state = x.clone(), _random_state(x.device)
    value = _require_values(function(given, draw), name)
    if not torch.equal(_random_state(x.device), state):
        raise ValueError(
            f"{name} drew random numbers from torch's global generator; a discrepancy is a fixed "
            "function of data and draw."
        )
    if not torch.equal(given, x):
        raise ValueError(f"{name} changed its data in place; work on a copy.")
    _require_place(function, value, x, name)
    if value.isnan().any():
        raise ValueError(f"{name} returned NaN for {int(value.isnan().sum())} of its values.")
    again = _require_values(function(given, draw), name)
    if not torch.equal(value, again):
        raise ValueError(f"{name} returned different values for the same data and draw.")
    return value


def _require_data(x: Tensor) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must be data of shape (N, G), got shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}.")


def _require_place(function: Discrepancy, value: Tensor, x: Tensor, name: str) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must return its value on {x.device}, got {value.device}.")
    axis = getattr(function, "axis", None)
    expected = {"unit": x.shape[0], "feature": x.shape[1]}.get(axis or "")
    if expected is not None and value.shape != (expected,):
        raise ValueError(
            f"{name} has one value per {axis}: expected shape ({expected},), "
            f"got {tuple(value.shape)}."
        )


def _random_state(device: torch.device) -> Tensor:
    state = torch.random.get_rng_state()
    if device.type != "cuda":
        return state
    return torch.cat([state, torch.cuda.get_rng_state(device)])
