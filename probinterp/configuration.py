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
    return value.configuration if isinstance(value, Configured) else value
