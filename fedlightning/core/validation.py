"""Settings that are their values: equal if all of these are, shown as the call that made them."""

from __future__ import annotations

__all__ = ["Value"]


class Value:
    """A setting whose attributes are the arguments of its constructor, and nothing else.

    Example:
        >>> class Dose(Value):
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
