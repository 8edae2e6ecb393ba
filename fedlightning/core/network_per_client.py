"""Modules that hold several networks, of which each client has one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from fedlightning.core.state import State

__all__ = ["NetworkPerClient"]


@runtime_checkable
class NetworkPerClient(Protocol):
    """A module in which clients have networks of other architectures.

    It holds one network per architecture, and its state says which of them ``forward`` uses. A
    client trains, keeps and loads the keys of its own network alone. Nothing can be averaged over
    clients but keys that all of them have.
    """

    def client_keys(self, client: int) -> Collection[str]:
        """Return the state-dict keys of a client's network."""

    def client_start(self, client: int) -> State:
        """Return the values that make the module the client's, whatever else it holds."""
