"""A federation over Flower's messages without Flower's processes, beside the simulation of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedlightning.cli.config.recipes import find_config
from fedlightning.cli.federated_cli import FederatedCLI
from fedlightning.core.state import State
from fedlightning.deployment.identities import Identity, read_identity, write_keys
from fedlightning.deployment.node import Node, NodeParts
from fedlightning.deployment.node_loop import NodeTrainer
from fedlightning.deployment.node_store import NodeStore
from fedlightning.deployment.remote_executor import receipt_in
from fedlightning.deployment.server_loop import ServerTrainer
from fedlightning.flower.client_app import answer, say_who
from fedlightning.flower.grid_nodes import WHO
from fedlightning.flower.server_app import Patience, ServerRun, serve
from fedlightning.flower.settings import App
from fedlightning.personalization.models.writer import state_digest
from fedlightning.trainer import FederatedTrainer

QUIET = ["--trainer.enable_progress_bar=false"]


class Killed(BaseException):
    """Stands for a signal that ends the server at once."""


class LoopbackGrid(Grid):
    """Hands each message to a node, in this process, as soon as it is pushed.

    Args:
        nodes: The nodes, by Flower's number of each.

    Attributes:
        messages: Every message, each followed by its answer.
        lose_messages: The numbers of messages whose answers are lost, after the work was done.
        renumber: Whether a node that was lost comes back under another number.
        banned: How many looks at the list of nodes do not find one that was lost.
        troubles: What a lost node answers, one after the other, when it is asked who it is again;
            ``None`` for nothing.
        die_at: The number of the message at which the server dies, after the work was done.
        before_message: Hears of each message's number.
    """

    def __init__(self, nodes: dict[int, Node]) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.nodes = nodes
        self.messages: list[Message] = []
        self.lose_messages: set[int] = set()
        self.renumber = False
        self.banned = 0
        self.troubles: list[Error | None] = []
        self._missing: dict[int, int] = {}
        self.die_at: int | None = None
        self.before_message: Callable[[int], Any] = lambda number: None
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: Any = None) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        missing = {node for node, looks in self._missing.items() if looks > 0}
        self._missing = {node: looks - 1 for node, looks in self._missing.items()}
        return [node for node in self.nodes if node not in missing]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def _deliver(self, message: Message) -> str:
        count = len(self.messages) // 2
        self.before_message(count)
        assert self._missing.get(message.metadata.dst_node_id, 0) <= 0, "it is banned"
        number = str(count)
        message.metadata.__dict__["_message_id"] = number
        node = self.nodes[message.metadata.dst_node_id]
        if message.metadata.message_type == WHO:
            reply = say_who(message, node)
            if message.metadata.dst_node_id in self._missing and self.troubles:
                if (trouble := self.troubles.pop(0)) is None:
                    self.messages += [message, reply]
                    return number
                reply = Message(trouble, reply_to=message)
        else:
            reply = answer(message, lambda: node)
            if count == self.die_at:
                raise Killed
            if count in self.lose_messages:  # after its work is done
                reply = Message(Error(5, "Node Unavailable"), reply_to=message)
                self._missing[message.metadata.dst_node_id] = self.banned
                if self.renumber:
                    self.nodes[message.metadata.dst_node_id + 1000] = node
                    del self.nodes[message.metadata.dst_node_id]
        self.messages += [message, reply]
        self._replies[number] = reply
        return number


@dataclass
class Result:
    """What a run has left.

    Args:
        model: Digest of the global model.
        server: Digest of the server's state.
        kept: Digests of what clients keep, by client.
        metrics: The text of ``metrics.csv``.
    """

    model: str
    server: str
    kept: dict[int, str]
    metrics: str


@dataclass
class Run:
    """One config, to be simulated and to be deployed.

    Args:
        config: Name of a recipe, or a file.
        folder: Where runs and stores go.
        options: Options for both.
    """

    config: str
    folder: Path
    options: Sequence[str] = ()
    stores: dict[int, NodeStore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = App(self.folder, (*QUIET, *self.options), config=find_config(self.config))
        cli = _idle()
        cli.read(self.app.words())
        cli.datamodule.prepare_data()
        self._config, self._built = cli.config, copy.deepcopy(cli.config_init)
        self._untrained, self._data = copy.deepcopy(cli.model), cli.datamodule

    def build(self, kind: type, folder: str) -> Any:
        """Return a new trainer; the config is parsed only once."""
        cli = _idle()
        cli.config, cli.config_init = self._config, copy.deepcopy(self._built)
        cli.trainer_class = kind
        return cli.instantiate_trainer(default_root_dir=str(self.folder / folder))

    def untrained(self) -> Any:
        """Return an untrained module; one of the config's optimizers knows only its own."""
        cli = _idle()
        cli.config = self._config
        if not cli.config["fit"].get("optimizer"):
            return copy.deepcopy(self._untrained)
        cli.rebuild()
        return cli.model

    def simulate(self) -> Result:
        """Simulate it."""
        module, trainer = self.untrained(), self.build(FederatedTrainer, "simulated")
        data = copy.deepcopy(self._data)
        data.setup("fit")
        trainer.fit(module, datamodule=data)
        store = trainer.federated_loop.client_store
        return _result(trainer, {c: store.get(c) or {} for c in sorted(store)})

    def nodes(self, settings: str = "") -> dict[int, Node]:
        """Return a node for each client, numbered from 100."""
        data = copy.deepcopy(self._data)
        data.setup("fit")
        parts = NodeParts(
            lambda: self.build(NodeTrainer, "nodes"),
            self.untrained,
            data,
            settings or self.app.digest(),
        )
        clients = range(data.num_clients)
        self.stores = {c: NodeStore(self.folder / "stores" / str(c), c) for c in clients}
        who = self._identities(data.num_clients)
        return {100 + c: Node(c, parts, self.stores[c], who[c]) for c in clients}

    def _identities(self, count: int) -> list[Identity]:
        keys, names = self.folder / "keys", list(map(str, range(count)))
        if not keys.exists():
            write_keys(keys, names)
        return [read_identity(keys / f"node-{c}", keys, names, c) for c in range(count)]

    def deploy(self, grid: Grid, lost: float = 5) -> Result:
        """Deploy it over a grid, whose lost nodes are waited for so many seconds."""
        module, trainer = self.untrained(), self.build(ServerTrainer, "deployed")
        data = copy.deepcopy(self._data)
        run = ServerRun(trainer, module, data, self.app.digest())
        serve(grid, run, Patience(nodes=0, lost=lost, poll=0))
        receipts = trainer.federated_loop.client_store
        kept = {c: self.stores[c].load(receipt_in(receipts.get(c))) for c in sorted(receipts)}
        return _result(trainer, kept)


class _Idle(FederatedCLI):
    """Reads one config after another; to build a parser takes longer than a small run."""

    subcommands = staticmethod(lambda: {"fit": FederatedCLI.subcommands()["fit"]})

    def fit(self, **kwargs: Any) -> None:
        pass

    def read(self, words: list[str]) -> None:
        """Read a config, and build what it says."""
        self.parse_arguments(self.parser, words)
        self.rebuild()

    def rebuild(self) -> None:
        """Build what the config says."""
        self.trainer_class = FederatedTrainer
        self._set_seed()
        self.instantiate_classes()
        self._add_configure_optimizers_method_to_model("fit")


@cache
def _idle() -> _Idle:
    return _Idle(
        args=["fit", "--config", str(find_config("quickstart"))], save_config_callback=None
    )


def _result(trainer: Any, kept: dict[int, State]) -> Result:
    return Result(
        state_digest(trainer.lightning_module.state_dict()),
        state_digest(trainer.federated_loop.server.state_dict()),
        {client: state_digest(state) for client, state in kept.items() if state},
        (Path(trainer.log_dir) / "metrics.csv").read_text(),
    )
