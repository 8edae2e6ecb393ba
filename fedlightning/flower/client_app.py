"""The ClientApp: one message, one answer, in a process that Flower starts for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlightning.cli.terminal import quiet
from fedlightning.deployment.identities import Identity, read_identity
from fedlightning.deployment.messages import Answer
from fedlightning.deployment.node import Node, NodeParts
from fedlightning.deployment.node_store import NodeStore
from fedlightning.errors import ConfigError, FedLightningError
from fedlightning.flower.settings import App, client_number, node_parts
from fedlightning.flower.wire import Rules, decode_order, encode_answer, encode_passport

__all__ = ["answer", "app", "say_who"]


def say_who(message: Message, node: Node) -> Message:
    """Answer who a node is."""
    return Message(encode_passport(node.passport()), reply_to=message)


def answer(message: Message, make_node: Callable[[], Node]) -> Message:
    """Carry out the order in a message.

    Args:
        message: The message.
        make_node: Builds the node.
    """
    order, rules = decode_order(message.content), Rules()
    try:
        node = make_node()
        if order.client != node.client:
            raise ConfigError(f"the order is for client {order.client}; this is {node.client}.")
        found = node.carry_out(order)
        rules = Rules.of(node.algorithm, node.kept_keys)
        return Message(encode_answer(found, rules), reply_to=message)
    except FedLightningError as error:
        refused = Answer(order.client, error=(type(error).__name__, str(error)))
        return Message(encode_answer(refused, rules), reply_to=message)


def _node(context: Context) -> Node:
    """Return the node that Flower's configs describe."""
    here: dict[str, Any] = dict(context.node_config)
    run = App.of(context.run_config)
    if "config" in here:
        run = App(run.folder, run.overrides, run.clients, Path(str(here["config"])))
    client = client_number(here.get("client"), run.clients)
    if "store" not in here:
        raise ConfigError(
            "the node's config lacks `store`, the folder of what the client keeps: "
            f"--node-config 'client={client} store=\"/var/lib/fedlightning\"'"
        )
    store = Path(str(here["store"])).absolute()
    root = str(here["root"]) if "root" in here else None
    parts = node_parts(run, client, root, store)
    return Node(client, parts, NodeStore(store, client), _identity(here, run, parts, client))


def _identity(here: Mapping[str, Any], run: App, parts: NodeParts, client: int) -> Identity | None:
    """Return the keys that a node's config names, if it does.

    Raises:
        ConfigError: It names half of them, or a file is not right.
    """
    given = [name for name in ("key", "peers") if name in here]
    if not given:
        return None
    if len(given) == 1:
        raise ConfigError(f"the node's config has {given[0]} alone; key and peers belong together.")
    names = run.clients or tuple(map(str, range(parts.data.num_clients)))
    return read_identity(Path(str(here["key"])), Path(str(here["peers"])), names, client)


def who(message: Message, context: Context) -> Message:
    """Say who this node is."""
    with quiet():
        return say_who(message, _node(context))


def carry_out(message: Message, context: Context) -> Message:
    """Carry out an order; what it leaves at the client stays here."""
    with quiet():
        return answer(message, lambda: _node(context))


app = ClientApp()
app.query("who")(who)
app.query("phase")(carry_out)
app.train()(carry_out)
app.evaluate("personalize")(carry_out)
