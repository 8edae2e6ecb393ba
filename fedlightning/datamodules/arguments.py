"""Checks of constructor arguments: what can be decided without looking at any data."""

from __future__ import annotations

import math
import numbers

from fedlightning.errors import ConfigError

__all__ = ["check_fraction", "check_instance", "check_integer", "check_positive"]


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
