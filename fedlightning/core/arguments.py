"""Keyword arguments of constructors: a misspelt one is answered with the nearest name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from fedlightning.core.description import forget_arguments, note_arguments
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["NamedArguments", "unknown_argument"]

_MOST_NAMES = 25


class NamedArguments:
    """A class whose constructor refuses an unknown keyword with a :class:`ConfigError`.

    What an object was made with is noted, so that a run folder can say it
    (:func:`fedlightning.core.description.described`).

    Example:
        >>> class Dose(NamedArguments):
        ...     def __init__(self, grams: float) -> None: ...
        >>> Dose(gramms=1.0)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: Dose has no setting 'gramms'. Did you mean 'grams'?
    """

    if not TYPE_CHECKING:  # type checkers know the names from __init__

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Check the names, then create the object."""
            known = _argument_names(cls) if kwargs else None
            if known is not None and (unknown := kwargs.keys() - known):
                raise ConfigError(unknown_argument(cls.__name__, min(unknown), known))
            made = super().__new__(cls)
            note_arguments(made, args, kwargs)
            return made

        def __setstate__(self, state: Any) -> None:
            """Take the state of a copy, which nobody has given arguments."""
            forget_arguments(self)
            above = getattr(super(), "__setstate__", None)
            if above is not None:
                above(state)
            else:
                self.__dict__.update(state)


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> str:
    """Return what to say of a setting that a class does not have.

    Example:
        >>> unknown_argument("MLP", "widht", ["width", "lr"])
        "MLP has no setting 'widht'. Did you mean 'width'?"
        >>> unknown_argument("IID", "alpha", ["seed"])
        "IID has no setting 'alpha' (its settings: seed)."
    """
    names = list(known)
    if hint := did_you_mean(name, names):
        return f"{owner} has no setting {name!r}.{hint}"
    listed = f" (its settings: {', '.join(names)})" if 0 < len(names) <= _MOST_NAMES else ""
    return f"{owner} has no setting {name!r}{listed}."


@cache
def _argument_names(cls: type) -> tuple[str, ...] | None:
    """Return the keywords that a constructor takes, ``None`` if it may take any.

    Those of a class of this package that hands the rest on are its own and the next class's.
    """
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names += [each.name for each in parameters if each.kind in _KEYWORDS]
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            break
        if base.__module__.partition(".")[0] != "fedlightning":
            return None
    return tuple(dict.fromkeys(names))


_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
