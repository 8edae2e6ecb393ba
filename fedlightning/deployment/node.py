"""A client's node: its data, its store, and the settings that all nodes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fedlightning._version import __version__
from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.state import State, live_state
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.deployment.exchange import NodeExchange, node_exchange_of
from fedlightning.deployment.identities import Identity
from fedlightning.deployment.messages import Answer, Order, Passport, Receipt, TrainOrder
from fedlightning.deployment.node_loop import Kept, NodeTrainer
from fedlightning.deployment.node_store import NodeStore
from fedlightning.errors import FedLightningError
from fedlightning.personalization.models.writer import state_digest

__all__ = ["Node", "NodeParts", "versions"]


@dataclass(frozen=True)
class NodeParts:
    """What the settings of a run make at a node.

    Args:
        trainer: Returns a new trainer.
        module: Returns the untrained module, to be changed.
        data: The data module.
        settings: Digest of the settings.
    """

    trainer: Callable[[], NodeTrainer]
    module: Callable[[], pl.LightningModule]
    data: FederatedDataModule
    settings: str


class Node:
    """Answers for one client.

    Args:
        client: Client id.
        parts: What the settings make.
        store: What the client keeps.
        identity: Who the node is to other nodes, where they deal with each other.

    Attributes:
        kept_keys: The keys of the model that clients keep, once an order is carried out.
        algorithm: The run's algorithm, likewise.
    """

    def __init__(
        self, client: int, parts: NodeParts, store: NodeStore, identity: Identity | None = None
    ) -> None:
        self.client = client
        self.kept_keys: frozenset[str] = frozenset()
        self.algorithm = Algorithm()
        self._parts = parts
        self._store = store
        self._identity = identity

    def passport(self) -> Passport:
        """Say what this node is, before the first round.

        Raises:
            ConfigError: The node lacks something that the run needs.
        """
        data = self._parts.data
        data.setup("fit")
        exchange = self._exchange(self._parts.trainer())
        if exchange is not None:
            exchange.check(data.num_clients)
        splits = {view.split for view in data.evaluation_views()} | {"train", "val", "test"}
        state = live_state(self._parts.module())
        return Passport(
            self.client,
            versions(),
            self._parts.settings,
            state_digest({key: value for key, value in state.items() if not is_lazy(value)}),
            self._schema(),
            {split: data.num_examples(self.client, split) for split in sorted(splits)},
        )

    def carry_out(self, order: Order) -> Answer:
        """Return the answer to an order."""
        parts = self._parts
        kept = Kept(self._store.load, self._save, self._store.folder, self._store.states)
        try:
            trainer = parts.trainer()
            exchange = self._exchange(trainer)
            if exchange is not None and order.phase is not None and order.train is None:
                return Answer(self.client, reply=exchange.reply(order.phase))
            answer = trainer.carry_out(order, kept, parts.module(), parts.data)
            trained = answer.trained
            if exchange is not None and trained is not None:
                update = exchange.send(order, trained.update)
                answer = replace(answer, trained=replace(trained, update=update))
        except FedLightningError as error:
            return Answer(self.client, error=(type(error).__name__, str(error)))
        self.kept_keys = frozenset(trainer.federated_loop.roles.kept)
        self.algorithm = trainer.federation.client_algorithm
        return answer

    def _exchange(self, trainer: NodeTrainer) -> NodeExchange | None:
        return node_exchange_of(trainer.federation, self.client, self._store.folder, self._identity)

    def _save(self, train: TrainOrder, state: State) -> None:
        stream = train.job.stream
        self._store.save(Receipt(train.run, stream), state)
        needed = {stream, train.after, train.durable} - {None}
        self._store.keep_only(train.run, {int(one) for one in needed if one is not None})

    def _schema(self) -> str:
        """Return what one of the client's examples looks like, in words."""
        data = self._parts.data
        split = next((s for s in ("train", "test") if data.num_examples(self.client, s)), None)
        if split is None:
            return ""
        with forked_generators(Key(0, "evaluate"), torch.device("cpu")):
            batch = next(iter(data.batches(self.client, split)), None)
        return f"{_shapes(batch)}, {getattr(data, 'num_classes', 0)} classes"


def versions() -> dict[str, str]:
    """Return the versions of the packages on which the bits of a result depend."""
    others = {name: version(name) for name in ("torch", "pytorch-lightning")}
    return {"fedlightning": __version__, **others}


def _shapes(batch: Any) -> str:
    """Return shapes, without the batch's dimension, and dtypes.

    Example:
        >>> _shapes((torch.zeros(7, 1, 8, 8), torch.zeros(7, dtype=torch.long)))
        '(float32 1x8x8, int64)'
    """
    if isinstance(batch, Tensor):
        shape = "x".join(map(str, batch.shape[1:]))
        return f"{str(batch.dtype).removeprefix('torch.')} {shape}".rstrip()
    if isinstance(batch, Mapping):
        return f"{{{', '.join(f'{name}: {_shapes(value)}' for name, value in batch.items())}}}"
    if isinstance(batch, (tuple, list)):
        return f"({', '.join(map(_shapes, batch))})"
    return type(batch).__name__
