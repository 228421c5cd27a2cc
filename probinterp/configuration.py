"""Objects that remember how they were made, so that they can be saved as plain JSON."""

from __future__ import annotations

import functools
import inspect
from typing import Any


class Configured:
    """Record the arguments of the constructor in ``configuration``.

    Every class below this one keeps ``{"class": name, "arguments": {...}}`` with the arguments
    that made the object, defaults included; arguments that are configured objects themselves are
    stored the same way. A model is therefore saved without pickle and made again by its
    own constructor.
    """

    configuration: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        constructor = cls.__init__
        signature = inspect.signature(constructor)

        @functools.wraps(constructor)
        def recording(self: Any, *args: Any, **options: Any) -> None:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            constructor(self, *args, **options)
            arguments = dict(list(bound.arguments.items())[1:])
            described = {name: _describe(value) for name, value in arguments.items()}
            self.configuration = {"class": type(self).__name__, "arguments": described}

        cls.__init__ = recording  # type: ignore[method-assign]


def _describe(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)  # as JSON gives it back
    return value.configuration if isinstance(value, Configured) else value


def construct(described: Any) -> Any:
    """Make an object again from its ``configuration``; other values are returned as they are.

    Classes are found by name among those that derive from :class:`Configured`; a class of the
    user's own must have been imported before.

    Raises
    ------
    LookupError
        If no class, or more than one, has the name.
    TypeError
        If the constructor does not take the arguments.
    """
    if not (isinstance(described, dict) and {"class", "arguments"} <= described.keys()):
        return described
    name = described["class"]
    found = [cls for cls in _descendants(Configured) if cls.__name__ == name]
    if len(found) != 1:
        problem = "no class" if not found else "more than one class"
        raise LookupError(f"{name!r} is needed, but {problem} of that name is imported.")
    arguments = {key: construct(value) for key, value in described["arguments"].items()}
    try:
        return found[0](**arguments)
    except TypeError as error:
        raise TypeError(f"cannot make {name} again: {error}") from error


def _descendants(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return children + [below for child in children for below in _descendants(child)]
