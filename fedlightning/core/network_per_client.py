"""Modules that hold several networks, of which each client has one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from fedlightning.core.state import State
from fedlightning.core.views import EvaluationView

__all__ = ["NetworkPerClient", "views_by_architecture"]


@runtime_checkable
class NetworkPerClient(Protocol):
    """A module in which clients have networks of other architectures.

    It holds one network per architecture, and its state says which of them ``forward`` uses. A
    client trains, keeps and loads the keys of its own network alone. Nothing can be averaged over
    clients but keys that all of them have.
    """

    def architecture_of(self, client: int) -> str:
        """Return the name of a client's architecture."""

    def client_keys(self, client: int) -> Collection[str]:
        """Return the state-dict keys of a client's network."""

    def client_start(self, client: int) -> State:
        """Return the values that make the module the client's, whatever else it holds."""


def views_by_architecture(
    module: nn.Module, views: Sequence[EvaluationView]
) -> list[EvaluationView]:
    """Return a view for each architecture: the clients of the main view that have it.

    Args:
        module: Any module; only a :class:`NetworkPerClient` has architectures.
        views: The views of the data.
    """
    if not isinstance(module, NetworkPerClient):
        return []
    members: dict[str, list[int]] = {}
    for view in views:
        if not view.name and not view.on_validation_data:
            for client in view.clients:
                members.setdefault(module.architecture_of(client), []).append(client)
    return [EvaluationView(name, clients) for name, clients in sorted(members.items())]
