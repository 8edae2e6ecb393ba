"""How much of a stale update counts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fedlightning.core.validation import Setting, check_number
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["ConstantWeight", "Hinge", "Polynomial", "StalenessWeight", "weighting_of"]


class StalenessWeight(Setting, ABC):
    """The share of an update's change that counts, by the number of commits since its start."""

    @abstractmethod
    def weight(self, staleness: int) -> float:
        """Return the share; 1 at staleness 0."""


class ConstantWeight(StalenessWeight):
    """A stale update counts as much as a fresh one.

    Example:
        >>> ConstantWeight().weight(7)
        1.0
    """

    def __init__(self) -> None:
        """Make it; it has no settings."""

    def weight(self, staleness: int) -> float:
        """Return 1."""
        return 1.0


class Polynomial(StalenessWeight):
    """``(1 + staleness) ** -a`` (Xie et al., *Asynchronous Federated Optimization*, 2019).

    Args:
        a: The exponent, >= 0. FedBuff (Nguyen et al., AISTATS 2022) uses 0.5.

    Example:
        >>> Polynomial(0.5).weight(3)
        0.5
    """

    def __init__(self, a: float = 0.5) -> None:
        self.a = check_number("a", a, at_least=0)

    def weight(self, staleness: int) -> float:
        """Return the share."""
        return float((1.0 + staleness) ** -self.a)


class Hinge(StalenessWeight):
    """1 up to a staleness of ``b``, then ``1 / (a (staleness - b) + 1)`` (Xie et al., 2019).

    Args:
        a: How fast it falls, > 0.
        b: The largest staleness that costs nothing.

    Example:
        >>> Hinge(a=0.5, b=4).weight(4), Hinge(a=0.5, b=4).weight(6)
        (1.0, 0.5)
    """

    def __init__(self, a: float = 10.0, b: float = 4.0) -> None:
        self.a = check_number("a", a, above=0)
        self.b = check_number("b", b, at_least=0)

    def weight(self, staleness: int) -> float:
        """Return the share."""
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


_BY_NAME: dict[str, type[StalenessWeight]] = {
    "constant": ConstantWeight, "polynomial": Polynomial, "hinge": Hinge,
}  # fmt: skip


def weighting_of(given: StalenessWeight | str) -> StalenessWeight:
    """Return a weighting by its name, with its default settings, or the one that is given.

    Raises:
        ConfigError: There is none of this name.

    Example:
        >>> weighting_of("polynomial"), weighting_of(Hinge(b=2))
        (Polynomial(a=0.5), Hinge(a=10.0, b=2))
    """
    if isinstance(given, StalenessWeight):
        return given
    if not isinstance(given, str) or given not in _BY_NAME:
        raise ConfigError(
            f"federation.schedule.weighting must be one of {', '.join(_BY_NAME)}, or an object "
            f"such as Polynomial(a=0.5), got {given!r}.{did_you_mean(str(given), _BY_NAME)}"
        )
    return _BY_NAME[given]()
