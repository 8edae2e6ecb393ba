"""The server of a deployment: Lightning's loop as ever, and clients that train elsewhere."""

from __future__ import annotations

import secrets
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.core.batches import Batch, Split
from fedlightning.core.metrics import LogFlags
from fedlightning.core.state import State, live_state
from fedlightning.datamodules import ClientTask
from fedlightning.deployment.messages import (
    Answer,
    Hyperparameters,
    Nodes,
    Order,
    Receipt,
    TrainOrder,
    raise_error,
)
from fedlightning.deployment.refusals import refuse_algorithm, refuse_module, refuse_sums
from fedlightning.deployment.remote_data import refuse_examples
from fedlightning.deployment.remote_executor import RemoteExecutor, receipt_in
from fedlightning.engine.clients import ResidentClients
from fedlightning.engine.evaluation import ClientEvaluator
from fedlightning.engine.executor import Executor
from fedlightning.engine.loop import FederatedLoop
from fedlightning.errors import FederationError
from fedlightning.federation.jobs import Job
from fedlightning.personalization.results import PersonalResult
from fedlightning.trainer import FederatedTrainer

__all__ = ["RemoteEvaluator", "ServerLoop", "ServerTrainer"]


class RemoteEvaluator(ClientEvaluator):
    """Has clients evaluated at their nodes; means over views are formed here.

    Args:
        trainer: The trainer.
        seed: Seed of what an evaluation step draws.
        loop: The server's loop.
    """

    def __init__(self, trainer: Trainer, seed: int | None, loop: ServerLoop) -> None:
        super().__init__(trainer, seed)
        self._loop = loop
        self._scores: dict[tuple[int, Split], Mapping[str, float]] = {}

    def start(self, tasks: Sequence[ClientTask]) -> None:
        """Have all clients evaluated, in one message each, which may be the next order to train."""
        splits: dict[int, list[Split]] = defaultdict(list)
        for task in tasks:
            splits[task.client].append(task.split)
        self._scores = {}
        for answer in self._loop.measure(splits, self.per_class):
            self._scores |= {(answer.client, s): values for s, values in answer.scores.items()}
            self._flags |= answer.flags

    def of_client(self, task: ClientTask) -> Mapping[str, float]:
        """Return what a client's node has measured; nothing of a client that is skipped."""
        return self._scores.get((task.client, task.split), {})

    def finish(self) -> None:
        """End an evaluation: nothing of it is here."""

    def evaluate(
        self, task: ClientTask, batches: Iterable[Batch] | None = None
    ) -> dict[str, float]:
        """Refuse to evaluate here."""
        refuse_examples(f"client {task.client}, split {task.split}")

    def batches(self, client: int, split: Split) -> Iterator[Batch]:
        """Refuse to return examples."""
        refuse_examples(f"client {client}, split {split}")


class ServerLoop(FederatedLoop):
    """The loop of a deployment's server.

    Attributes:
        nodes: Carries orders to the clients' nodes, and answers back.
    """

    nodes: Nodes
    keeps_for_clients = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluator = RemoteEvaluator(self.trainer, self.federation.seed, self)
        self._initial: State = {}
        self._run = 0
        self._durable: dict[int, int | None] = {}
        self._remote: RemoteExecutor

    # -- before the first round ----------------------------------------------------------------

    def prepare(self) -> None:
        """Refuse what cannot be deployed, and note the model that nodes build as well."""
        refuse_algorithm(self.federation, self.trainer)
        super().prepare()

    def check_examples(self) -> None:
        """Look at the module alone: nodes show it their examples."""
        refuse_module(self.trainer, self.module, self.data)

    def begin(self) -> None:
        """Build what merges updates."""
        known = next(iter(self.client_store), None)
        receipt = receipt_in(self.client_store.get(known)) if known is not None else None
        self._run = receipt.run if receipt is not None else secrets.randbits(62)
        super().begin()
        if self._remote.apart:
            refuse_sums(self.server, self.schedule)

    def note_initial(self, module: nn.Module) -> None:
        """Note the untrained model, which every node builds for itself."""
        self._initial = {
            key: value.clone() for key, value in live_state(module).items() if not is_lazy(value)
        }

    def executor_for(self, clients: ResidentClients) -> Executor:
        """Return what has clients trained at their nodes."""
        self._remote = RemoteExecutor(
            self.federation, clients, self, self.workers, self.nodes, self._train_order
        )
        return self._remote

    # -- orders --------------------------------------------------------------------------------

    def run_round(self) -> Mapping[str, tuple[float, LogFlags]]:
        """Train the jobs of the next commit, and merge them."""
        self._durable = {}
        return super().run_round()

    def measure(self, splits: Mapping[int, Sequence[Split]], per_class: bool) -> Iterator[Answer]:
        """Have the global model measured at nodes, which also begin with the next round.

        Args:
            splits: Which splits of which clients.
            per_class: Whether accuracies are also measured class by class.

        Raises:
            FederationError: A node does not answer, and ``on_client_failure`` is not ``skip``.
        """
        jobs = {job.client: job for job in reversed(self._startable())}
        orders = []
        for client in dict.fromkeys([*splits, *jobs]):
            job = jobs.get(client)
            orders.append(
                Order(
                    client,
                    self.trainer.current_epoch,
                    self._state_for(job),
                    self.server.version,
                    tuple(splits.get(client, ())),
                    per_class,
                    self._training(job, None, self.round + 1) if job is not None else None,
                )
            )
        for order, answer in zip(
            orders, self._remote.train_early(list(jobs.values()), orders), strict=True
        ):
            raise_error(answer)
            lost = order.measure and not answer.scores and answer.failure is not None
            if lost and self.federation.on_client_failure != "skip":
                raise FederationError(f"evaluation of the global model: {answer.failure}")
            yield answer

    def personalize(self, place: int, clients: Sequence[int]) -> list[PersonalResult]:
        """Have clients personalized at their nodes, where the models stay.

        Args:
            place: The callback's place among those of its kind.
            clients: Who is personalized.
        """
        orders = [
            Order(
                client,
                self.trainer.current_epoch,
                self._state_for(None),
                self.server.version,
                personalize=place,
                kept=self._receipt(client),
            )
            for client in clients
        ]
        results = []
        for position, answer in enumerate(self.nodes.ask(orders)):
            raise_error(answer)
            if answer.personal is not None:
                results.append(answer.personal)
            elif self.federation.on_client_failure != "skip":
                raise FederationError(f"personalization: {answer.failure}")
            self.fire("on_client_personalized", position + 1, len(orders))
        return results

    def _startable(self) -> Sequence[Job]:
        """Return the jobs of the next commit that start from the model as it is now."""
        rounds = self.max_epochs
        if not self._remote.may_start_early:
            return ()
        if rounds is not None and 0 <= rounds <= self.round + 1:
            return ()
        jobs = self._of_those_that_stay(self._next_commit()[0])
        return [job for job in jobs if job.version == self.server.version]

    def _train_order(self, job: Job, kept: Receipt | None) -> Order:
        return Order(
            job.client,
            self.trainer.current_epoch,
            self._state_for(job),
            self.server.version,
            train=self._training(job, kept, self.round),
        )

    def _training(self, job: Job, kept: Receipt | None, round_: int) -> TrainOrder:
        stored = self._receipt(job.client)
        durable = self._durable.setdefault(
            job.client, stored.stream if stored is not None else None
        )
        after = kept or stored
        steps = self._planned_steps()
        return TrainOrder(
            job=job,
            round=round_,
            updates=self.updates,
            extras=dict(self.server.broadcast(job).extras),
            hyperparameters=_hyperparameters(self.trainer),
            planned_steps=steps(job.client) if steps is not None else None,
            run=self._run,
            after=after.stream if after is not None else None,
            durable=durable,
        )

    def _receipt(self, client: int) -> Receipt | None:
        return receipt_in(self.client_store.get(client))

    def _state_for(self, job: Job | None) -> State:
        """Return what a node does not have yet of the model: what is shared, and what has changed.

        Frozen parameters are not shared, and every node has built them; once a client has changed
        one, it is sent.
        """
        assert self._resident is not None, "begin() comes first"
        model = self._resident.received if job is None else self.server.broadcast(job).state
        kept, shared = frozenset(self.roles.kept), frozenset(self.roles.shared)
        return {
            key: value
            for key, value in model.items()
            if key in shared or (key not in kept and self._has_changed(key, value))
        }

    def _has_changed(self, key: str, value: Tensor) -> bool:
        initial = self._initial.get(key)
        return initial is None or not value.equal(initial.to(value.device))


class ServerTrainer(FederatedTrainer):
    """A FederatedTrainer whose clients are elsewhere.

    Call :meth:`connect` before ``fit``.

    Args:
        **kwargs: Arguments of :class:`~fedlightning.FederatedTrainer`.
    """

    loop_class = ServerLoop

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "num_sanity_val_steps": 0})

    def connect(self, nodes: Nodes) -> None:
        """Have clients train, and be measured and personalized, where ``nodes`` leads."""
        loop = self.fit_loop
        assert isinstance(loop, ServerLoop)
        loop.nodes = nodes
        callbacks: list[Any] = self.callbacks  # type: ignore[attr-defined]
        own = [cb for cb in callbacks if isinstance(cb, PersonalizationCallback)]
        for place, callback in enumerate(own):
            callback.elsewhere = _At(loop, place)

    def fit(self, model: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Train for ``max_epochs`` rounds; see :meth:`fedlightning.FederatedTrainer.fit`."""
        loop = self.fit_loop
        assert isinstance(loop, ServerLoop)
        loop.note_initial(model)
        with warnings.catch_warnings():  # optimizers here have schedules, and never step
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step")
            super().fit(model, *args, **kwargs)


class _At:
    """Personalizes clients at their nodes for one callback."""

    def __init__(self, loop: ServerLoop, place: int) -> None:
        self._loop = loop
        self._place = place

    def __call__(self, clients: Sequence[int]) -> list[PersonalResult]:
        return self._loop.personalize(self._place, clients)


def _hyperparameters(trainer: Trainer) -> Hyperparameters:
    """Return the plain values of the optimizers' groups."""
    return [
        [
            {k: v for k, v in group.items() if k != "params" and _is_plain(v)}
            for group in optimizer.param_groups
        ]
        for optimizer in trainer.optimizers
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
