"""Names that a module does not have: an import of one is answered with the nearest name."""

from __future__ import annotations

import dis
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from fedlightning.errors import did_you_mean

__all__ = ["missing_name", "suggesting"]

_HOMES = (
    "algorithms",
    "algorithms.aggregation",
    "callbacks",
    "datamodules",
    "federation",
    "federation.uplink",
    "models",
    "privacy",
)


def suggesting(module: str, names: Iterable[str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``, which says what was probably meant.

    Args:
        module: The module's name.
        names: The names that it has.

    Example:
        >>> from fedlightning.models import MPL
        Traceback (most recent call last):
        ImportError: cannot import name 'MPL' from 'fedlightning.models'. Did you mean 'MLP'?
    """
    known = tuple(names)

    def __getattr__(name: str) -> Any:
        raise missing_name(module, name, known, sys._getframe(1))

    return __getattr__


def missing_name(module: str, name: str, known: Iterable[str], frame: Any) -> Exception:
    """Return the error for a name that a module does not have.

    Python replaces the AttributeError of a ``from`` import by an ImportError without its text;
    there the ImportError itself is returned. All other ways to ask, ``hasattr`` among them, get an
    AttributeError.

    Args:
        module: The module's name.
        name: The name.
        known: The names that it has.
        frame: The frame that asks for it.
    """
    if _imports(frame):
        text = f"cannot import name {name!r} from {module!r}."
        return ImportError(text + _meant(module, name, known), name=name)
    error = AttributeError(f"module {module!r} has no attribute {name!r}.")
    if name.startswith("_") or frame.f_code.co_filename.startswith("<frozen importlib"):
        return error
    return AttributeError(f"{error}{_meant(module, name, known)}")


def _meant(module: str, name: str, known: Iterable[str]) -> str:
    """Return where else the name is, or the nearest name."""
    for home in _HOMES if name[:1].isupper() else ():
        other = f"fedlightning.{home}"
        if other != module and name in importlib.import_module(other).__all__:
            return f" It is in {other}."
    return did_you_mean(name, known)


def _imports(frame: Any) -> bool:
    """Whether a frame is at a ``from module import name``."""
    return bool(frame.f_code.co_code[frame.f_lasti] == dis.opmap["IMPORT_FROM"])
