"""Settings that are their values: equal if all of these are, shown as the call that made them."""

from __future__ import annotations

import math
import numbers

from fedlightning.errors import ConfigError

__all__ = [
    "Setting",
    "check_fraction",
    "check_instance",
    "check_integer",
    "check_number",
    "check_positive",
    "require_byzantine",
]


class Setting:
    """A setting whose attributes are the arguments of its constructor, and nothing else.

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


def check_integer(name: str, value: object, *, at_least: int) -> int:
    """Return ``value`` as an int that is at least ``at_least``.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        at_least: The smallest value that makes sense.

    Raises:
        ConfigError: ``value`` is no integer (booleans are none either) or too small.

    Example:
        >>> check_integer("batch_size", 50, at_least=1)
        50
        >>> check_integer("batch_size", 0, at_least=1)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: batch_size must be >= 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be an integer >= {at_least}, got {_shown(value)}")
    if value < at_least:
        raise ConfigError(f"{name} must be >= {at_least}, got {value}")
    return int(value)


def check_fraction(name: str, value: object, *, zero: bool) -> float:
    """Return ``value`` as a float in [0, 1), or in (0, 1) unless ``zero`` is allowed.

    Raises:
        ConfigError: ``value`` is no number or outside the range.

    Example:
        >>> check_fraction("val_fraction", 0, zero=True)
        0.0
        >>> check_fraction("val_fraction", 1.5, zero=True)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: val_fraction must be a number in [0, 1), got 1.5
    """
    number = _real(value)
    if not (0 < number < 1 or (zero and number == 0)):
        interval = "[0, 1)" if zero else "(0, 1)"
        raise ConfigError(f"{name} must be a number in {interval}, got {_shown(value)}")
    return number


def check_positive(name: str, value: object) -> float:
    """Return ``value`` as a finite float greater than zero.

    Raises:
        ConfigError: ``value`` is no number, not finite, or not greater than zero.

    Example:
        >>> check_positive("alpha", 0.5)
        0.5
        >>> check_positive("alpha", float("inf"))
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: alpha must be a finite number > 0, got inf
    """
    number = _real(value)
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{name} must be a finite number > 0, got {_shown(value)}")
    return number


def check_instance(name: str, value: object, kind: type) -> None:
    """Refuse a value that is no instance of ``kind``.

    Raises:
        ConfigError: It is none; a class in the place of an instance of it is the usual slip.

    Example:
        >>> check_instance("partition", int, kind=int)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: partition must be an instance of int, got the class int
    """
    if not isinstance(value, kind):
        got = type(value).__name__
        if isinstance(value, type):
            got = f"the class {value.__name__}"
        raise ConfigError(f"{name} must be an instance of {kind.__name__}, got {got}")


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    return float(value)


def _shown(value: object) -> str:
    return "None (null)" if value is None else repr(value)


def require_byzantine(number: int) -> None:
    """Refuse what cannot be a number of attackers.

    Raises:
        ConfigError: If it is not an integer >= 0.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError(
            f"federation.aggregator.num_byzantine must be an integer >= 0, got {number}."
        )


def check_number(
    name: str,
    value: float,
    least: float = 0.0,
    most: float = float("inf"),
    open_: bool = False,
    below: float = float("inf"),
) -> None:
    """Refuse a setting of an algorithm that is not a finite number within its range.

    Args:
        name: Its key under ``algorithm``.
        value: What was given.
        least: The smallest value.
        most: The largest value.
        open_: Whether ``least`` itself is refused, too.
        below: What it has to be smaller than.

    Raises:
        ConfigError: If it is out of its range.

    Example:
        >>> check_number("mu", -1.0)
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: algorithm.mu must be a finite number >= 0, got -1.0.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    within = number and least <= value <= most and value < below
    if within and not (open_ and value == least):
        return
    upper = f" and <= {most:g}" if most != float("inf") else ""
    upper = f" and < {below:g}" if below != float("inf") else upper
    raise ConfigError(
        f"algorithm.{name} must be a finite number {'>' if open_ else '>='} {least:g}{upper}, "
        f"got {value}."
    )
