"""The optional packages of the vision half, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType


def open_clip_module() -> ModuleType:
    """Import the package open_clip; it takes seconds, so only where it is used.

    Raises
    ------
    ImportError
        If it is not installed, with the extra that brings it.
    """
    return _module("open_clip")


def pil_image_module() -> ModuleType:
    """Import the module ``PIL.Image``."""
    return _module("PIL.Image")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name.split('.')[0]} could not be imported ({error}); "
            "install it with: pip install 'probinterp[vision]'"
        ) from error
