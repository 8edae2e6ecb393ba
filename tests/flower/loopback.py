"""A federation over Flower's messages without Flower's processes, beside the simulation of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
from fedlightning.deployment.node import Node, NodeParts
from fedlightning.deployment.node_loop import NodeTrainer
from fedlightning.deployment.node_store import NodeStore
from fedlightning.deployment.remote_executor import receipt_in
from fedlightning.deployment.server_loop import ServerTrainer
from fedlightning.flower.client_app import answer, say_who
from fedlightning.flower.grid_nodes import WHO
from fedlightning.flower.server_app import Patience, serve
from fedlightning.flower.settings import App
from fedlightning.personalization.models.writer import state_digest

QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.num_sanity_val_steps=0",
]


class LoopbackGrid(Grid):
    """Hands each message to a node, in this process, as soon as it is pushed.

    Args:
        nodes: The nodes, by Flower's number of each.
    """

    def __init__(self, nodes: dict[int, Node]) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.nodes = nodes
        self.messages: list[Message] = []
        self.lose: list[int] = []
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
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def _deliver(self, message: Message) -> str:
        number = str(len(self.messages))
        message.metadata.__dict__["_message_id"] = number
        node = self.nodes[message.metadata.dst_node_id]
        if message.metadata.message_type == WHO:
            reply = say_who(message, node)
        else:
            reply = answer(message, lambda: node)
            if message.metadata.dst_node_id in self.lose:  # after its work is done
                self.lose.remove(message.metadata.dst_node_id)
                reply = Message(Error(5, "Node Unavailable"), reply_to=message)
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

    def simulate(self) -> Result:
        """Simulate it."""
        cli = _Idle(args=self.app.words(f"--trainer.default_root_dir={self.folder / 'simulated'}"))
        cli.datamodule.setup("fit")
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        store = cli.trainer.federated_loop.client_store
        return _result(cli.trainer, {c: store.get(c) or {} for c in sorted(store)})

    def nodes(self) -> dict[int, Node]:
        """Return a node for each client, numbered from 100."""
        cli = _Idle(args=self.app.words(f"--trainer.default_root_dir={self.folder / 'nodes'}"),
                    kind=NodeTrainer, save_config_callback=None)  # fmt: skip
        cli.datamodule.setup("fit")
        parts = NodeParts(
            cli.instantiate_trainer, lambda: _fresh(cli), cli.datamodule, self.app.digest()
        )
        clients = range(cli.datamodule.num_clients)
        self.stores = {c: NodeStore(self.folder / "stores" / str(c), c) for c in clients}
        return {100 + c: Node(c, parts, self.stores[c]) for c in clients}

    def deploy(self, grid: Grid) -> Result:
        """Deploy it over a grid."""
        patience = Patience(nodes=0, lost=5, poll=0)
        trainer = serve(grid, self.app, patience, str(self.folder / "deployed"))
        return self.result(trainer)

    def result(self, trainer: ServerTrainer) -> Result:
        """Return what a deployed run has left."""
        receipts = trainer.federated_loop.client_store
        kept = {c: self.stores[c].load(receipt_in(receipts.get(c))) for c in sorted(receipts)}
        return _result(trainer, kept)


class _Idle(FederatedCLI):
    def __init__(self, kind: type | None = None, **kwargs: Any) -> None:
        self._kind = kind
        super().__init__(**kwargs)

    def before_instantiate_classes(self) -> None:
        if self._kind is not None:
            self.trainer_class = self._kind

    def fit(self, **kwargs: Any) -> None:
        pass


def _fresh(cli: FederatedCLI) -> Any:
    """Return an untrained module; an optimizer of the config's exists once, for one module."""
    if "configure_optimizers" not in vars(cli.model):
        return copy.deepcopy(cli.model)
    cli.instantiate_classes()
    cli._add_configure_optimizers_method_to_model("fit")
    return cli.model


def _result(trainer: Any, kept: dict[int, State]) -> Result:
    return Result(
        state_digest(trainer.lightning_module.state_dict()),
        state_digest(trainer.federated_loop.server.state_dict()),
        {client: state_digest(state) for client, state in kept.items() if state},
        (Path(trainer.log_dir) / "metrics.csv").read_text(),
    )
