"""A client's node: one fit of Lightning's carries out one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from fedlightning.callbacks.personalization import PersonalizationCallback
from fedlightning.core.batches import Split
from fedlightning.core.messages import Broadcast
from fedlightning.core.metrics import LogFlags
from fedlightning.core.overrides import overrides
from fedlightning.core.state import State
from fedlightning.datamodules import ClientTask
from fedlightning.deployment.messages import Answer, Order, Receipt, TrainOrder
from fedlightning.engine.clients import ResidentClients
from fedlightning.engine.executor import Executor
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.resume.run_settings import Settings
from fedlightning.engine.steps import STEP_HOOKS
from fedlightning.federation.failures import attempt
from fedlightning.federation.jobs import Job, ScheduleState
from fedlightning.federation.server import Server
from fedlightning.personalization.models.saving import write_one
from fedlightning.personalization.results import PersonalResult
from fedlightning.privacy.example_ledger import ACCOUNT, with_account
from fedlightning.privacy.example_level import ExampleDP
from fedlightning.trainer import FederatedTrainer

__all__ = ["Kept", "NodeLoop", "NodeTrainer"]


class Kept:
    """What a client keeps while an order is carried out.

    Args:
        before: What it has kept so far, for the receipt that an order names.
        save: Saves what it keeps after an update.
        folder: Where its personal model goes; ``None`` keeps none.
        versions: Returns all that it has kept after updates of a run and still has.
    """

    def __init__(
        self,
        before: Callable[[Receipt | None], State],
        save: Callable[[TrainOrder, State], None],
        folder: Path | None = None,
        versions: Callable[[int], Iterable[State]] = lambda run: (),
    ) -> None:
        self.before = before
        self.save = save
        self.folder = folder
        self.versions = versions


class _Received(Server):
    """Hands on the model that a message brought."""

    message: Broadcast

    def broadcast(self, job: Job) -> Broadcast:
        """Return it."""
        return self.message


class NodeLoop(FederatedLoop):
    """Carries out one order in the place of a round.

    Attributes:
        order: What to do.
        kept: What the client keeps.
        answer: What to answer, once it is done.
        tuners: The callbacks that personalize.
    """

    order: Order
    kept: Kept
    answer: Answer
    tuners: tuple[PersonalizationCallback, ...] = ()
    server: _Received

    # -- what a node does not do ---------------------------------------------------------------

    def begin(self) -> None:
        """Build what trains; nothing is planned here."""
        self._schedule_state = ScheduleState()
        super().begin()

    def jobs_per_commit(self) -> int:
        """Return one: an order."""
        return 1

    def jobs_of_round(self) -> int:
        """Return one: an order."""
        return 1

    def executor_for(self, clients: ResidentClients) -> Executor:
        """Note what trains the client."""
        self._clients = clients
        return super().executor_for(clients)

    def _start_server(self, resident: ResidentModule) -> Server:
        return _Received(self.federation.client_algorithm, self.data.num_clients)

    def _what_must_not_change(self) -> Settings:
        return {}

    def _planned_steps(self) -> Callable[[int], int] | None:
        train = self.order.train
        steps = train.planned_steps if train is not None else None
        return None if steps is None else lambda client: steps

    # -- an order ------------------------------------------------------------------------------

    def run_round(self) -> Mapping[str, tuple[float, LogFlags]]:
        """Measure the received model, then train or personalize."""
        order, resident = self.order, self._resident
        assert resident is not None, "begin() comes first"
        changed = order.state.keys() & self.model.frozen.keys
        if changed:
            self.model.share_changed(changed)
        resident.commit(order.state)
        self._go_to_round(order.round)
        answer = Answer(order.client, self._scores(), dict(self.evaluator.flags))
        if order.train is not None:
            answer = self._trained(answer, order.train, resident)
        if order.personalize is not None:
            answer = replace(answer, personal=self._personal(order))
        self.answer = answer
        self._go_to_round(0)
        return {}

    def _scores(self) -> dict[Split, Mapping[str, float]]:
        order, evaluator = self.order, self.evaluator
        evaluator.per_class = order.per_class
        tasks = [
            ClientTask(order.client, split, self.data.num_examples(order.client, split))
            for split in order.measure
        ]
        if not tasks:
            return {}
        evaluator.start(tasks)
        return {task.split: evaluator.of_client(task) for task in tasks}

    def _trained(self, answer: Answer, train: TrainOrder, resident: ResidentModule) -> Answer:
        self._go_to_round(train.round)
        self._count_updates(train.updates)
        for optimizer, groups in zip(self.trainer.optimizers, train.hyperparameters, strict=True):
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
        resident.begin_round()
        job = train.job
        self.server.message = Broadcast(job.version, resident.received, train.extras)
        kept = self._start_from(train)
        done = attempt(
            job.client,
            train.round,
            0,
            lambda client: self._clients.train(job, kept),
            self._clients.forget,
        )
        if done.result is None:
            return replace(answer, failure=done.failures[-1])
        state = {key: value.clone() for key, value in done.result.update.state.items()}
        self._clients.reset()
        own = {key: value.cpu() for key, value in done.result.kept.items()}
        if own:
            self.kept.save(train, own)
        update = replace(done.result.update, state=state)
        return replace(
            answer, trained=replace(done.result, update=update, kept={}), keeps=bool(own)
        )

    def _start_from(self, train: TrainOrder) -> State:
        """Return what the client starts from, with all private steps that it may have released.

        An update that is made again has other noise, if that is secure: it is a second release.
        """
        kept, hooks = self.kept.before(_receipt(train)), self.federation.client_algorithm.hooks
        if any(isinstance(hook, ExampleDP) and hook.secure for hook in hooks):
            for state in self.kept.versions(train.run):
                if ACCOUNT in state:
                    kept = with_account(kept, state[ACCOUNT])
        return kept

    def _personal(self, order: Order) -> PersonalResult:
        assert order.personalize is not None
        callback = self.tuners[order.personalize]
        kept = self.kept.before(order.kept)
        if kept:
            self.client_store.update({order.client: kept})
        with callback.personalizer(self.trainer).at_work() as personalizer:
            result = personalizer.client(order.client)
            if self.kept.folder is not None and callback.save_personal is not False:
                own = personalizer.own_state(result)
                write_one(self, self.kept.folder, order.client, callback.part, own, order.commits)
        return result


class NodeTrainer(FederatedTrainer):
    """A FederatedTrainer that carries out orders for one client, and writes nothing itself.

    Of the callbacks, those take part that look at a client's update or step; those that personalize
    lend their settings. Everything else is the server's.

    Args:
        **kwargs: Arguments of :class:`~fedlightning.FederatedTrainer`.
    """

    loop_class = NodeLoop

    def __init__(self, **kwargs: Any) -> None:
        given = kwargs.get("callbacks") or []
        callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
        mine: dict[str, Any] = {
            "callbacks": [callback for callback in callbacks if _takes_part(callback)],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "check_val_every_n_epoch": 1,
            "max_epochs": 1,
            "max_steps": -1,
            "max_time": None,
            "min_epochs": None,
            "devices": 1,
        }
        super().__init__(**{**kwargs, **mine})
        loop = self.fit_loop
        assert isinstance(loop, NodeLoop)
        loop.tuners = tuple(cb for cb in callbacks if isinstance(cb, PersonalizationCallback))

    def carry_out(
        self,
        order: Order,
        kept: Kept,
        module: pl.LightningModule,
        datamodule: pl.LightningDataModule,
    ) -> Answer:
        """Return the answer to an order.

        Args:
            order: What to do.
            kept: What the client keeps.
            module: The untrained module; it is changed.
            datamodule: The client's data.
        """
        loop = self.fit_loop
        assert isinstance(loop, NodeLoop)
        loop.order, loop.kept = order, kept
        self.fit(module, datamodule=datamodule)
        return loop.answer


def _takes_part(callback: Callback) -> bool:
    looks = any(hasattr(callback, hook) for hook in ("on_client_end", "on_local_loss"))
    return looks or any(overrides(callback, hook, Callback) for hook in STEP_HOOKS)


def _receipt(train: TrainOrder) -> Receipt | None:
    return Receipt(train.run, train.after) if train.after is not None else None
