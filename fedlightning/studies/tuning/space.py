"""The search space of a setting, as a study file declares it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fedlightning.core.validation import check_integer, check_number, is_integer, is_number
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["Choice", "Dimension", "Range", "Suggests", "Whole", "read_dimension"]

_KEYS = ("low", "high", "log", "step", "type")
_TYPES = ("float", "int")


class Suggests(Protocol):
    """What draws values: a trial of optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, step: Any, log: bool) -> float:
        """Return a number."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Return an integer."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True)
class Range:
    """Real numbers from ``low`` to ``high``, both included.

    Args:
        low: The least.
        high: The largest.
        log: Whether the logarithm is uniform.
        step: The distance between values, ``None`` for any value in between.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Return the value that a trial takes."""
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def examples(self) -> list[Any]:
        """Values at its ends: where these are accepted, those in between are."""
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (", by factors" if self.log else "")


@dataclass(frozen=True)
class Whole:
    """Integers from ``low`` to ``high``, both included.

    Args:
        low: The least.
        high: The largest.
        log: Whether the logarithm is uniform.
        step: The distance between values; 1 with ``log``.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Return the value that a trial takes."""
        return trial.suggest_int(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def examples(self) -> list[Any]:
        """Values at its ends: where these are accepted, those in between are."""
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (", by factors" if self.log else "")


@dataclass(frozen=True)
class Choice:
    """One of some values, which may be anything that YAML can say, such as a class.

    Args:
        values: The values.
    """

    values: tuple[Any, ...]

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Return the value that a trial takes."""
        return json.loads(trial.suggest_categorical(key, [json.dumps(v) for v in self.values]))

    @property
    def examples(self) -> list[Any]:
        """All values."""
        return list(self.values)

    def __str__(self) -> str:
        return ", ".join(value if isinstance(value, str) else json.dumps(value)
                         for value in self.values)  # fmt: skip


Dimension = Range | Whole | Choice


def read_dimension(where: str, given: Any) -> Dimension:
    """Return the search space of one setting.

    A list is a choice. A mapping has ``low`` and ``high``, and may have ``log``, ``step`` and
    ``type`` (``float`` or ``int``; two integers without ``type`` are a range of integers).

    Args:
        where: Its key, for messages.
        given: What the file says.

    Raises:
        ConfigError: It is not a search space; the message has the key, and the way out.

    Example:
        >>> read_dimension("space.model.lr", {"low": 1e-3, "high": 1.0, "log": True})
        Range(low=0.001, high=1.0, log=True, step=None)
        >>> read_dimension("space.data.batch_size", {"low": 5, "high": 50, "step": 5})
        Whole(low=5, high=50, log=False, step=5)
        >>> read_dimension("space.federation.algorithm.weights", ["uniform", "examples"])
        Choice(values=('uniform', 'examples'))
    """
    if isinstance(given, list):
        return _choice(where, given)
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given):
        raise ConfigError(
            f"{where} must be a list of values, or a range such as {{low: 0.001, high: 1.0, log: "
            f"true}}, got {given!r}."
        )
    for key in given:
        if key not in _KEYS:
            raise ConfigError(
                f"{where}: a range has no key {key!r}.{did_you_mean(str(key), _KEYS)} Its keys: "
                f"{', '.join(_KEYS)}."
            )
    low, high, log = given["low"], given["high"], given.get("log", False)
    kind = given.get("type", "int" if is_integer(low) and is_integer(high) else "float")
    if kind not in _TYPES:
        raise ConfigError(
            f"{where}.type must be float or int, got {kind!r}.{did_you_mean(str(kind), _TYPES)}"
        )
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log must be true or false, got {log!r}.")
    for name in ("low", "high"):
        if not is_number(given[name]):
            raise ConfigError(f"{where}.{name} must be a number, got {given[name]!r}.")
    if low >= high:
        raise ConfigError(f"{where}: low must be below high, got {low} and {high}.")
    if log and low <= 0:
        raise ConfigError(f"{where}.low must be above 0 with log: true, got {low}.")
    step = given.get("step")
    if log and step is not None:
        raise ConfigError(f"{where}: log and step exclude each other; keep one of them.")
    if kind == "float":
        step = None if step is None else check_number(f"{where}.step", step, above=0)
        return Range(float(low), float(high), log, step)
    return Whole(
        check_integer(f"{where}.low", low, at_least=-(2**53)),
        check_integer(f"{where}.high", high, at_least=-(2**53)),
        log,
        1 if step is None else check_integer(f"{where}.step", step, at_least=1),
    )


def _choice(where: str, given: list[Any]) -> Choice:
    texts = [json.dumps(value, sort_keys=True, default=str) for value in given]
    if len(texts) < 2:
        raise ConfigError(
            f"{where}: {given} leaves no choice; give two values or more, or move it to settings."
        )
    if len(set(texts)) < len(texts):
        raise ConfigError(f"{where}: {given} has duplicates.")
    return Choice(tuple(given))
