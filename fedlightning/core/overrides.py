"""Whether an object has a method of its own in the place of its base class's."""

from __future__ import annotations

__all__ = ["overrides"]


def overrides(instance: object, name: str, base: type) -> bool:
    """Whether an object has its own method of this name, rather than the base class's.

    Example:
        >>> class Base:
        ...     def hook(self): ...
        >>> class Own(Base):
        ...     def hook(self): ...
        >>> overrides(Base(), "hook", Base), overrides(Own(), "hook", Base)
        (False, True)
    """
    own = vars(instance).get(name) or getattr(type(instance), name, None)
    return own is not None and own is not getattr(base, name, None)
