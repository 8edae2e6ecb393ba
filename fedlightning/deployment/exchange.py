"""What nodes settle with each other, through the server, around the training of a commit.

An algorithm's messages are one order and one answer per client and round. Where that is not enough,
as for masks that cancel, an :class:`Exchange` at the server sends further :class:`Phase` messages
before and after, and a :class:`NodeExchange` at each node answers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.core.messages import ClientUpdate
from fedlightning.deployment.identities import Identity
from fedlightning.deployment.masks.node import NodeMasks
from fedlightning.deployment.masks.server import MaskedSums
from fedlightning.deployment.messages import Order, Phase
from fedlightning.errors import ConfigError
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation

__all__ = ["Ask", "Exchange", "NodeExchange", "exchange_of", "node_exchange_of"]

Ask = Callable[[Mapping[int, Phase]], Mapping[int, Mapping[str, bytes]]]
"""Sends a phase to each client; returns the replies of those that are there."""


class Exchange(Protocol):
    """The server's half."""

    def before(self, clients: Sequence[int], commit: int, ask: Ask) -> Mapping[int, Phase]:
        """Return what goes with each client's order to train; a client that is lost is left out.

        Args:
            clients: Who trains.
            commit: The number of the commit.
            ask: Asks nodes.
        """

    def after(
        self, updates: Mapping[int, ClientUpdate], orders: Mapping[int, Order], ask: Ask
    ) -> Mapping[int, ClientUpdate]:
        """Return what the server may take in of the updates that have come.

        Args:
            updates: By client.
            orders: What asked for them, by client.
            ask: Asks nodes.
        """

    def combine(self, server: Server) -> None:
        """Add to the server what the updates did not have themselves."""


class NodeExchange(Protocol):
    """A node's half."""

    def check(self, num_clients: int) -> None:
        """Refuse a run for which something is missing here; before the first round."""

    def reply(self, phase: Phase) -> Mapping[str, bytes]:
        """Return the answer to a phase that comes alone."""

    def send(self, order: Order, update: ClientUpdate) -> ClientUpdate:
        """Return what leaves the node of an update; refuse an order without the phase for it."""


def exchange_of(federation: Federation) -> Exchange | None:
    """Return the server's half of what a federation's settings need; ``None`` for nothing."""
    rule = federation.aggregator
    return MaskedSums(rule) if isinstance(rule, SecureSum) else None


def node_exchange_of(
    federation: Federation, client: int, folder: Path, identity: Identity | None
) -> NodeExchange | None:
    """Return a node's half; ``None`` for nothing.

    Args:
        federation: The settings.
        client: Client id.
        folder: The client's folder.
        identity: The node's key, and the others' public ones.

    Raises:
        ConfigError: There is no identity, and one is needed.
    """
    rule = federation.aggregator
    if not isinstance(rule, SecureSum):
        return None
    if identity is None:
        raise ConfigError(
            "federation.aggregator: under SecureSum nodes mask what they send, and must know each "
            'other: --node-config \'key="node-0" peers="peers" ...\', the node\'s private key and '
            "a folder with the public ones (node-0.pub, node-1.pub, ...) of all clients."
        )
    return NodeMasks(rule, client, folder, identity)
