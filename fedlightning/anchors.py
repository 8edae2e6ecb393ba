"""Where a module's tensors belong, for the case that a client puts others in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["Anchors"]

_TABLES = ("_parameters", "_buffers", "_modules")


class Anchors:
    """Remembers which parameters, buffers and children a module has, and puts them back.

    Optimizers and views of the state hold on to the tensors of the start; a client that assigns
    another one (``self.scale = nn.Parameter(...)``, ``self.mean = 0.9 * self.mean``) would go its
    own way unnoticed, and leave it to the next client.

    Args:
        module: The module.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> anchors, weight = Anchors(net), net.weight
        >>> net.weight = nn.Parameter(net.weight.detach() + 1)
        >>> anchors.moved()
        True
        >>> anchors.restore()
        >>> net.weight is weight
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = _tables_of(module)

    def moved(self) -> bool:
        """Whether anything that makes up the state is not where it was."""
        return any(
            any(now.get(name) is not entry for name, entry in then.items())
            or (len(now) != len(then) and bool(_new_state(owner, now, then)))
            for owner, now, then in self._tables
        )

    def restore(self) -> None:
        """Put everything back; caches that are no state (non-persistent buffers) may stay."""
        for owner, now, then in self._tables:
            new = {*then, *_new_state(owner, now, then)}
            caches = {name: entry for name, entry in now.items() if name not in new}
            now.clear()
            now.update(then | caches)  # in the order of the start

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put everything back inside the ``with`` block alone."""
        present = [(now, dict(now)) for _, now, _ in self._tables]
        self.restore()
        try:
            yield
        finally:
            for now, entries in present:
                now.clear()
                now.update(entries)


def _tables_of(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]:
    return [
        (child, table, dict(table))
        for child in module.modules()
        for table in (getattr(child, name) for name in _TABLES)
    ]


def _new_state(owner: nn.Module, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return new entries that a state dict would show."""
    transient = owner._non_persistent_buffers_set
    return [
        name
        for name, entry in now.items()
        if name not in then
        and (
            (isinstance(entry, Tensor) and name not in transient)
            or (isinstance(entry, nn.Module) and bool(entry.state_dict()))
        )
    ]
