"""Numbers of a result as checked numpy arrays: what every picture and table starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(name: str, values: Any, n_dims: int, *, finite: bool = False) -> NDArray[np.float64]:
    """Copy tensors, arrays, data frames or nested lists to a float64 array.

    Parameters
    ----------
    name
        What the values are called in an error.
    values
        Numbers; a tensor may live on any device and may require gradients.
    n_dims
        Number of dimensions that the array must have.
    finite
        Whether NaN and infinite values are an error.

    Raises
    ------
    TypeError
        If the values are not numbers.
    ValueError
        If the number of dimensions is wrong, the array is empty, or ``finite`` is violated.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers, got {type(values).__name__}.") from error
    if array.ndim != n_dims:
        raise ValueError(f"{name} must have {n_dims} dimension(s), got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {array.shape}.")
    if finite and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} must be finite, got {count} NaN or infinite value(s).")
    return array


def as_names(what: str, names: Sequence[str] | None, length: int, *, prefix: str = "") -> list[str]:
    """Names as strings, or ``prefix`` with the numbers 1 to ``length`` when there are none.

    Raises
    ------
    ValueError
        If the number of names differs from ``length``.
    """
    if names is None:
        return [f"{prefix}{number}" for number in range(1, length + 1)]
    if isinstance(names, str) or len(names) != length:
        got = f"the string {names!r}" if isinstance(names, str) else f"{len(names)}"
        raise ValueError(f"{what} must have one name for each of {length}, got {got}.")
    return [str(name) for name in names]


def as_count(what: str, value: int) -> int:
    """``value`` if it is a positive whole number.

    Raises
    ------
    ValueError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{what} must be a positive whole number, got {value!r}.")
    return int(value)
