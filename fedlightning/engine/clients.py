"""The clients of a simulation: each of them borrows the resident module for its update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fedlightning.algorithms.context import ClientContext
from fedlightning.core.messages import Broadcast, ClientUpdate
from fedlightning.core.seeding import Key
from fedlightning.core.state import State
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.examples import has_classes
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_training import time_limit
from fedlightning.engine.model_roles import ModelRoles
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.workers.cohort_exchange import Trained
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import ConfigError
from fedlightning.federation.client_update import Training, client_update
from fedlightning.federation.failures import ServersOwn
from fedlightning.federation.jobs import Job
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation
from fedlightning.storage.client_store import ClientStore

__all__ = ["ResidentClient", "ResidentClients", "class_counts"]


@dataclass
class ResidentClient:
    """One client, as :func:`~fedlightning.federation.client_update.client_update` needs it.

    Args:
        number: Client id.
        kept: What it keeps; replaced when an update is complete.
        resident: The module's tensors.
        model: What is trained, shared and kept.
        num_examples: Number of its training examples.
        local_epochs: Passes over them.
        local_steps: Optimizer steps after which it stops; ``None`` means all of these passes.
        seed: The seed of the run.
        class_counts: Returns a client's number of examples per class.
        after_step: Called after every batch; what it raises ends the training.
    """

    number: int
    kept: State
    resident: ResidentModule
    model: ModelRoles
    num_examples: int
    local_epochs: int = 1
    local_steps: int | None = None
    seed: int = 0
    class_counts: Callable[[int, int], Tensor] | None = None
    after_step: Callable[[int], None] | None = None

    def changed(self, broadcast: Broadcast) -> frozenset[str]:
        """Return the keys of frozen parameters, which are not sent, that it has changed."""
        return self.model.frozen.changed(self.resident.view(), broadcast.state)

    def receive(self, job: Job, broadcast: Broadcast) -> ClientContext:
        """Load the broadcast and the kept parts into the module; freeze what is not trained."""
        roles = self.model.roles_of(self.number)
        self.resident.load_client(self.model.start_of(self.number, self.kept), broadcast.state)
        self.model.freeze()
        self.model.freeze_all_but(roles)
        return ClientContext(
            client=self.number,
            round=job.stream,
            version=broadcast.version,
            key=Key(self.seed, "fit", round=job.stream, client=self.number),
            local_epochs=self.local_epochs,
            local_steps=self.local_steps,
            num_examples=self.num_examples,
            module=self.model.module,
            received=broadcast.state,
            extras=broadcast.extras,
            before=self.kept,
            roles=roles,
            parts=lambda: self.model.parts,
            held=self.resident,
            counts=self.class_counts or _unknown,
            after_step=self.after_step,
        )


class Plans(Training, Protocol):
    """Training that may look ahead: several clients at once."""

    def plan(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs come next."""

    def epochs_of(self, client: int, steps: int) -> int:
        """Return how many passes over a client's data hold so many optimizer steps."""


class ResidentClients:
    """Trains one client after another on the resident module.

    Args:
        federation: Local epochs, uplink and time limit.
        data: The clients' data.
        model: What is trained, shared and kept.
        resident: The module's tensors.
        training: Makes the local epochs.
        log: Takes what the module logs in them.
        server: What broadcasts come from.
        store: What clients keep.
        seed: The seed of the run.
        workers: The processes that share the work.
        on_update: Sees every update before the uplink; ``None`` if nothing wants to.
        forget: Undoes what a training step that raised has left open.
    """

    def __init__(
        self,
        federation: Federation,
        data: FederatedDataModule,
        model: ModelRoles,
        resident: ResidentModule,
        training: Plans,
        log: LocalLog,
        server: Server,
        store: ClientStore,
        seed: int,
        workers: Workers,
        on_update: Callable[[ClientUpdate], None] | None = None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._federation = federation
        self._data = data
        self._model = model
        self._resident = resident
        self._training = training
        self._log = log
        self._server = server
        self._store = store
        self._seed = seed
        self._workers = workers
        self._on_update = on_update
        self._forget = forget

    def plan(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs this process trains next."""
        self._training.plan(jobs)
        if self._data.reads_ahead:
            self._data.expect(self._passes(jobs))

    def _passes(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Key]]:
        """Yield the client and the key of every local epoch of some jobs."""
        for job in jobs:
            key = Key(self._seed, "fit", round=job.stream, client=job.client)
            for epoch in range(self._epochs(job.client)):
                yield job.client, key.at(epoch=epoch)

    def _epochs(self, client: int) -> int:
        steps = self._federation.local_steps
        if steps is None:
            return self._federation.local_epochs
        return self._training.epochs_of(client, steps)

    def train(self, job: Job, kept: State | None) -> Trained:
        """Train a client; the update's state is a view of the resident module."""
        federation, number = self._federation, job.client
        kept = kept if kept is not None else self._store.get(number) or {}
        self._workers.announce(number, job.stream)
        client = ResidentClient(
            number,
            kept,
            self._resident,
            self._model,
            self._data.num_examples(number),
            self._epochs(number),
            federation.local_steps,
            self._seed,
            partial(class_counts, self._data, needed_by=federation.algorithm.name),
            self._after_step(),
        )
        update = client_update(
            job,
            self._server.broadcast(job),
            client,
            federation.client_algorithm,
            self._training,
            federation.stages,
            self._listen if self._on_update is not None else None,
        )
        return Trained(update, client.kept, dict(self._log.flags))

    def reset(self) -> None:
        """Make the module the global model again."""
        self._resident.reset_client()

    def forget(self) -> None:
        """Undo an update that failed: nothing of it may reach the next one."""
        self._log.discard()
        self._resident.reset_client()
        self._forget()

    def shared(self) -> State:
        """Return the shared part as it is in the module."""
        state = self._resident.view()
        return {key: state[key] for key in self._model.roles.shared}

    def num_examples(self, client: int) -> int:
        """Return a client's number of training examples; 0 if that fails, as its training will."""
        try:
            return self._data.num_examples(client)
        except Exception:
            return 0

    def _listen(self, update: ClientUpdate) -> None:
        assert self._on_update is not None
        try:
            self._on_update(update)
        except Exception as error:
            raise ServersOwn(error) from error

    def _after_step(self) -> Callable[[int], None] | None:
        """Return what ends a client's training early: its time is over, or a worker is lost."""
        in_time, workers = time_limit(self._federation.client_timeout), self._workers
        if workers.size == 1:
            return in_time

        def check(steps: int) -> None:
            workers.check()
            if in_time is not None:
                in_time(steps)

        return check


def class_counts(
    data: FederatedDataModule, client: int, num_classes: int, needed_by: str
) -> Tensor:
    """Return how many of a client's training examples are of each class, as float64.

    Args:
        data: The clients' data.
        client: Client id.
        num_classes: Number of classes.
        needed_by: What needs them, for the message.

    Raises:
        ConfigError: The data has no classes.
    """
    labels = data.labels(client)
    if not has_classes(labels):
        raise ConfigError(
            f"{needed_by} needs one class per example, which {type(data).__name__} does not have."
        )
    return torch.bincount(torch.from_numpy(labels), minlength=num_classes).double()


def _unknown(client: int, num_classes: int) -> Tensor:
    raise ConfigError(f"client {client}: nothing says how many examples of each class it has.")
