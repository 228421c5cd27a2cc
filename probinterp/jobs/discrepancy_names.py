"""Discrepancies as a person writes them on the command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from probinterp.criticism import Discrepancy, discrepancies

NOT_OFFERED = ("check_discrepancy", "discrepancy")


def available_discrepancies() -> list[str]:
    """Names with their arguments, for example ``quantile(q)``."""
    return sorted(_signature(name) for name in discrepancies.__all__ if name not in NOT_OFFERED)


def find_discrepancy(text: str, columns: Mapping[str, Sequence[Any]] | None = None) -> Discrepancy:
    """Discrepancy that a text like ``zero_fraction`` or ``quantile(0.9)`` stands for.

    Parameters
    ----------
    text
        A name of :mod:`probinterp.criticism.discrepancies`, with its arguments in brackets where
        it needs some. Arguments are numbers, other discrepancies (``per_feature(mean)``) and names
        of columns in quotes (``per_group(mean, "study")``).
    columns
        Labels of the units by column, for arguments in quotes.

    Raises
    ------
    ValueError
        If the text cannot be read, or arguments are missing or too many.
    KeyError
        If there is no discrepancy or no column of a name.
    """
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(
            f"cannot read the discrepancy {text!r}; write a name, or a name with arguments "
            "like quantile(0.9)."
        ) from None
    found = _value(expression, text, columns or {})
    if not callable(found) or not _is_discrepancy(found):
        raise ValueError(f"{text} is not a discrepancy: {_hint(expression)}.")
    return found


def suite_of(
    texts: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Discrepancy]:
    """Discrepancies by the texts that stand for them, each once."""
    return {text: find_discrepancy(text, columns) for text in texts}


def _value(node: ast.expr, text: str, columns: Mapping[str, Sequence[Any]]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value not in columns:
            raise KeyError(f"no column {node.value!r}; available: {sorted(columns)}.")
        return columns[node.value]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return _named(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _named(node.func.id)
        arguments = [_argument(argument, text, columns) for argument in node.args]
        try:
            return function(*arguments)
        except TypeError as error:
            why = str(error).removesuffix(".")
            raise ValueError(f"{text}: {_signature(node.func.id)} is wanted; {why}.") from error
    raise ValueError(
        f"cannot read {ast.unparse(node)!r} in the discrepancy {text!r}; arguments are numbers, "
        "other discrepancies, and names of columns in quotes."
    )


def _argument(node: ast.expr, text: str, columns: Mapping[str, Sequence[Any]]) -> Any:
    found = _value(node, text, columns)
    if callable(found) and not _is_discrepancy(found):
        raise ValueError(f"{text}: {ast.unparse(node)} is not a discrepancy: {_hint(node)}.")
    return found


def _named(name: str) -> Any:
    if name not in discrepancies.__all__ or name in NOT_OFFERED:
        raise KeyError(
            f"no discrepancy {name!r}; available: {', '.join(available_discrepancies())}."
        )
    return getattr(discrepancies, name)


def _is_discrepancy(function: Any) -> bool:
    return list(inspect.signature(function).parameters) == ["x", "draw"]


def _signature(name: str) -> str:
    function = getattr(discrepancies, name)
    if _is_discrepancy(function):
        return name
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return f"{name}({', '.join(needed)})"


def _hint(node: ast.expr) -> str:
    return f"write {_signature(node.id)}" if isinstance(node, ast.Name) else "it is a value"
