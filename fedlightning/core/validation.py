"""Checks of arguments, and settings that are equal if their arguments are."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import TypeGuard

from fedlightning.core.arguments import NamedArguments
from fedlightning.errors import ConfigError, did_you_mean, nearest

__all__ = [
    "USE_PYTORCH_LIGHTNING",
    "Setting",
    "check_choice",
    "check_instance",
    "check_integer",
    "check_number",
    "is_integer",
    "is_number",
    "other_lightning",
]

USE_PYTORCH_LIGHTNING = (
    "fedlightning uses `pytorch_lightning`, which has its own copies of these classes: write "
    "`import pytorch_lightning as pl` instead of `import lightning as L`."
)


class Setting(NamedArguments):
    """A setting whose attributes are exactly the arguments of its constructor.

    Settings of one class are equal if their attributes are; ``repr`` shows the call that makes one.

    Example:
        >>> class Dose(Setting):
        ...     def __init__(self, grams: float = 1.0) -> None:
        ...         self.grams = grams
        >>> Dose(2.0)
        Dose(grams=2.0)
        >>> Dose(1.0) == Dose()
        True
    """

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(self))


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of Python or NumPy; a boolean is not.

    Example:
        >>> is_integer(3), is_integer(3.0), is_integer(True)
        (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number of Python or NumPy; a boolean is not.

    Example:
        >>> is_number(3), is_number(0.5), is_number(float("nan")), is_number("3")
        (True, True, False, False)
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def check_integer(
    name: str, value: object, *, at_least: int, at_most: int | None = None, other: str = ""
) -> int:
    """Return ``value`` as an int within its range.

    Args:
        name: The argument's name, for the message.
        value: The given value.
        at_least: The smallest allowed value.
        at_most: The largest allowed value, if there is one.
        other: Another allowed value that the caller has tried, for the message.

    Raises:
        ConfigError: ``value`` is not an integer, or out of its range.

    Example:
        >>> check_integer("batch_size", 50, at_least=1)
        50
        >>> check_integer("batch_size", 0, at_least=1)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: batch_size must be an integer >= 1, got 0.
    """
    if is_integer(value) and at_least <= value and (at_most is None or value <= at_most):
        return int(value)
    upper = "" if at_most is None else f" and <= {at_most}"
    raise _refusal(name, f"an integer >= {at_least}{upper}", other, value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that ``value`` is one of some texts.

    Raises:
        ConfigError: It is not.

    Example:
        >>> check_choice("federation.buffers", "locale", ["average", "local"])
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: federation.buffers must be one of average, local, got ...
    """
    if value not in choices:
        raise ConfigError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}."
            f"{did_you_mean(str(value), choices)}"
        )


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    unit: str = "",
    other: str = "",
) -> float:
    """Return ``value`` as a finite number of Python within its range; an int stays an int.

    Args:
        name: The argument's name, for the message.
        value: The given value.
        at_least: The smallest allowed value, or
        above: the number that it must exceed.
        at_most: The largest allowed value, or
        below: the number that it must stay below.
        unit: Unit of the number, for the message.
        other: Another allowed value that the caller has tried, for the message.

    Raises:
        ConfigError: ``value`` is not a finite number, or out of its range.

    Example:
        >>> check_number("lr", 0.5, above=0)
        0.5
        >>> check_number("lr", float("inf"), above=0)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: lr must be a finite number > 0, got inf.
        >>> check_number("momentum", 1.5, at_least=0, below=1)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: momentum must be in [0, 1), got 1.5.
    """
    if (
        is_number(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    ):
        return value if type(value) in (int, float) else float(value)
    lower = at_least if at_least is not None else above
    upper = at_most if at_most is not None else below
    if lower is not None and upper is not None:
        left, right = "[" if at_least is not None else "(", "]" if at_most is not None else ")"
        expected = f"in {left}{lower:g}, {upper:g}{right}"
    else:
        expected = f"a finite number{f' of {unit}' if unit else ''}"
        for sign, limit in ((">=", at_least), (">", above), ("<=", at_most), ("<", below)):
            expected += "" if limit is None else f" {sign} {limit:g}"
    raise _refusal(name, expected, other, value)


def check_instance(name: str, value: object, kind: type) -> None:
    """Refuse a value that is not an instance of ``kind``, and say what was probably meant.

    Raises:
        ConfigError: It is a class, a class's name, an object of another kind, or of the package
            ``lightning``.

    Example:
        >>> check_instance("size", int, kind=int)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: size must be an instance of int, got the class int; ...
    """
    if isinstance(value, kind):
        return
    got, way_out = type(value).__name__, "."
    if isinstance(value, type):
        got = f"the class {value.__name__}"
        if issubclass(value, kind):
            way_out = f"; create an instance: {value.__name__}(...)."
    elif value is None or isinstance(value, (bool, int, float, str)):
        got = repr(value)
    if isinstance(value, str):
        names = [cls.__name__ for cls in _subclasses(kind) if not cls.__name__.startswith("_")]
        if (near := nearest(value, names)) is not None:
            way_out = f". Did you mean {near}(...)?"
    if hint := other_lightning(value):
        way_out = f", {hint}"
    raise ConfigError(f"{name} must be an instance of {kind.__name__}, got {got}{way_out}")


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        yield child
        yield from _subclasses(child)


def other_lightning(value: object) -> str:
    """Return what to change if a class, or an object's class, is built on package ``lightning``."""
    cls = value if isinstance(value, type) else type(value)
    if all(base.__module__.partition(".")[0] != "lightning" for base in cls.__mro__):
        return ""
    return f"a class of the package `lightning`; {USE_PYTORCH_LIGHTNING}"


def _refusal(name: str, expected: str, other: str, value: object) -> ConfigError:
    got = "None (null)" if value is None else value if is_number(value) else repr(value)
    return ConfigError(f"{name} must be {expected}{f', or {other}' if other else ''}, got {got}.")
