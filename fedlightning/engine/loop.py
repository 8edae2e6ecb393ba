"""`FederatedLoop`: the walk of a round, inside Lightning's fit loop.

The rule that explains all of it: the LightningModule is the client, a Callback is the server. To
callbacks an epoch is a commit and a batch is one client's update; to the module an epoch is a
local epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from fedlightning.algorithms.context import ClientContext
from fedlightning.algorithms.method import ServerSide
from fedlightning.core.batches import PUBLIC, Batch
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.metrics import Metrics
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.core.parts import KeyRoles, Parts
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.state import State, live_state
from fedlightning.core.views import CENTRAL
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.engine._lightning.local_progress import LocalProgress
from fedlightning.engine._lightning.round_loop import RoundLoop
from fedlightning.engine._lightning.stock_step import forget_failed_step
from fedlightning.engine.checks.module import check_initialised, check_module, trains_by_forward
from fedlightning.engine.checks.monitors import say_whose_model, warn_of_test_metrics
from fedlightning.engine.checks.public_data import check_public
from fedlightning.engine.checks.trial_step import check_by_trial
from fedlightning.engine.clients import Plans, ResidentClients
from fedlightning.engine.evaluation import ClientEvaluator, federated_data
from fedlightning.engine.executor import Executor, SerialExecutor, WorkerExecutor
from fedlightning.engine.freed_memory import FreedMemory
from fedlightning.engine.frozen import FrozenChanged
from fedlightning.engine.grouped.training import GroupedTraining
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_settings import TrainerSettings
from fedlightning.engine.local_training import LocalTraining
from fedlightning.engine.model_roles import ModelRoles, set_memory_format
from fedlightning.engine.planned_steps import PlannedSteps
from fedlightning.engine.private_rounds import PrivateRounds
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.resume.run_settings import (
    Settings,
    optimizer_settings,
    refuse_changes,
    settings_that_matter,
)
from fedlightning.engine.resume.snapshot import Snapshot
from fedlightning.engine.secure_ledgers import SecureLedgers
from fedlightning.engine.server_training import ServerTraining
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.clock import clock_metrics
from fedlightning.federation.failures import ServersOwn
from fedlightning.federation.jobs import Job, Population, ScheduleState
from fedlightning.federation.privacy_checks import check_shared
from fedlightning.federation.schedule import Synchronous
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation
from fedlightning.privacy.ledger import Ledger
from fedlightning.storage.checkpoint_reader import loop_state
from fedlightning.storage.client_store import ClientStore
from fedlightning.storage.run_layout import CLIENT_STATES

__all__ = ["FederatedLoop", "ModuleBorrower"]


class ModuleBorrower(Protocol):
    """What uses the resident module for something else than a round."""

    def showing_global(self) -> AbstractContextManager[None]:
        """Show the global model inside the ``with`` block."""


class FederatedLoop(RoundLoop):
    """Trains clients on one resident module and merges what they send.

    Args:
        trainer: The trainer that runs it.
        federation: How clients learn together.
        min_epochs: Least number of rounds.
        max_epochs: Number of rounds.

    Attributes:
        evaluator: Evaluates the module on one client after another.
        client_store: What clients keep.
        schedule: Which client updates make the next commit.
        server: The server, once training has started.
        jobs: The client updates of the commit under way.
        borrower: What uses the resident module for something else than a round.
        private: The run's privacy; ``None`` without ``federation.privacy``.
        modes: Whether each layer is in train mode, as the user has left it.
        keeps_for_clients: Whether :attr:`client_store` has what clients keep, and not only
            receipts for it.
    """

    keeps_for_clients = True

    def __init__(
        self,
        trainer: pl.Trainer,
        federation: Federation,
        min_epochs: int | None = 0,
        max_epochs: int | None = None,
    ) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.federation = federation
        self.evaluator = ClientEvaluator(trainer, federation.seed)
        self.evaluator.given_metric = federation.main_metric, federation.main_metric_mode
        self.client_store = ClientStore(self._store_folder, federation.personal_memory_mb * 2**20)
        self.server: Server
        self.jobs: Sequence[Job] = ()
        self.borrower: ModuleBorrower | None = None
        self.modes: dict[nn.Module, bool] = {}
        self.schedule = federation.schedule or Synchronous()
        self._schedule_state: ScheduleState | None = None
        self._planned: tuple[ScheduleState, Sequence[Job], ScheduleState] | None = None
        self._model: ModelRoles | None = None
        self._resident: ResidentModule | None = None
        self._executor: Executor
        self._ledgers: SecureLedgers
        self._server_training: ServerTraining | None = None
        self._server_state: State = {}
        self._versions: Mapping[int, Mapping[str, Any]] = {}
        self._settings: Settings
        self._compared: Settings | None = None
        self._optimizers: Settings = {}
        self._freed_memory = FreedMemory(federation.keep_freed_memory)
        self.private: PrivateRounds | None = None

    # -- who and what --------------------------------------------------------------------------

    @property
    def workers(self) -> Workers:
        """The processes that share the work."""
        return Workers.of(self.trainer)

    @property
    def data(self) -> FederatedDataModule:
        """The clients' data.

        Raises:
            ConfigError: If the trainer was given something else.
        """
        return federated_data(self.trainer)

    @property
    def seed(self) -> int:
        """The seed of everything in the run that is random."""
        return default_seed(self.federation.seed)

    @property
    def module(self) -> pl.LightningModule:
        """The resident module: the global model, or a client's during its update."""
        return self.trainer.lightning_module

    @property
    def model(self) -> ModelRoles:
        """Which of the module's keys are trained, shared and kept."""
        if self._model is None or self._model.module is not self.module:
            federation = self.federation
            algorithm = federation.client_algorithm
            self._model = ModelRoles(self.module, algorithm, federation.head, federation.buffers)
        return self._model

    @property
    def parts(self) -> Parts:
        """The parts of the module."""
        return self.model.parts

    @property
    def roles(self) -> KeyRoles:
        """Which of the module's keys are trained, shared and kept."""
        return self.model.roles

    def parts_for(self, expression: str) -> Parts:
        """Return the module's parts, as far as an expression needs them to be told apart."""
        return self.model.parts_for(expression)

    @property
    def personal(self) -> ClientStore:
        """The name of :attr:`client_store` in releases before 0.2."""
        return self.client_store

    def personal_model(self, client: int) -> State:
        """Return the values in which a client's own model differs from the global one."""
        return self.model.personal_model(client, self.client_store.get(client) or {})

    def clients_per_round(self) -> int:
        """Return the cohort's size, expected where cohorts have any (``fast_dev_run=n``: <= n)."""
        size = self.federation.cohort_count(len(self.data.training_clients))
        fast = int(getattr(self.trainer, "fast_dev_run", 0))
        return min(size, fast) if fast else size

    def jobs_per_commit(self) -> int:
        """Return how many client updates make a commit."""
        return self.schedule.jobs_per_commit(self.population)

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """Return the clients of a round, in the order in which they are merged."""
        seed = self.seed if self.private is None else self.private.cohort_seed
        key = Key(seed, "cohort", round=round_index)
        size = self.clients_per_round()
        clients = self.data.training_clients
        cohort = self.federation.cohort(key, self.data.num_clients, size, clients)
        if not self.federation.sized:
            return cohort[: int(getattr(self.trainer, "fast_dev_run", 0)) or None]
        if len(cohort) < size:
            raise ConfigError(
                f"the cohort of round {round_index} has {len(cohort)} clients, "
                f"federation.cohort_size says {size}."
            )
        return cohort[:size]

    @property
    def population(self) -> Population:
        """The clients, as the schedule sees them."""
        data = self.data
        return Population(
            self.seed,
            data.training_clients,
            self.clients_per_round(),
            self.cohort,
            data.num_examples,
            self._sample,
            self.federation.sized,
        )

    def _sample(self, commit: int, size: int, again: int) -> tuple[int, ...]:
        """Return so many clients that the sampler chooses for a commit."""
        key = Key(self.seed, "cohort", round=commit, epoch=again)
        return self.federation.cohort(key, self.data.num_clients, size, self.data.training_clients)

    # -- before the first round ----------------------------------------------------------------

    def note_modes(self, module: nn.Module | None) -> None:
        """Remember which layers the user has put into eval mode; of a model in eval mode, none."""
        training = module is not None and module.training
        self.modes = {c: c.training for c in module.modules()} if module and training else {}

    def prepare(self) -> None:
        """Freeze what the algorithm does not train; called before the optimizers are built."""
        check_initialised(self.module)
        self._model = None
        self.model.check()
        self.model.leave_out_frozen()
        self.model.freeze()
        self.set_memory_format()
        self.federation.check_leave_out(self.data.training_clients)
        if self.federation.privacy is not None:
            parameters = (key for key, _ in self.module.named_parameters())
            check_shared(self.roles.shared, parameters, live_state(self.module))
        if self.federation.sized and not getattr(self.trainer, "fast_dev_run", 0):
            size, given_by = self.jobs_per_commit(), self.schedule.size_given_by
            self.federation.check_min_clients(size, given_by)
            if self.federation.aggregator is not None:
                self.federation.aggregator.check(size, given_by)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ConfigError(
                f"{type(self.module).__name__} has no trainable parameters left for "
                f"{self.federation.algorithm.name}."
            )
        self.check_examples()

    def check_examples(self) -> None:
        """Show the module some examples, where it and the clients' data may not go together."""
        if trains_by_forward(self.module):
            check_module(self.trainer, self.module, self.data, self.evaluator)
        else:
            check_by_trial(self.trainer, self.module, self.data, self.seed)
        check_public(self.federation.algorithm, self.data)

    def note_optimizers(self) -> None:
        """Note how the module has built its optimizers, before callbacks add to their groups."""
        self._optimizers = optimizer_settings(self.trainer.optimizers)

    def set_memory_format(self) -> None:
        """Lay the weights out as they are trained."""
        half = "16" in str(self.trainer.precision)
        device = self.trainer.strategy.root_device
        set_memory_format(self.module, self.federation.channels_last, device, half)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Lay out weights and treat memory as in training, for an evaluation outside of ``fit``."""
        with torch.inference_mode(False):  # otherwise the weights would be inference tensors
            self.set_memory_format()
        self._freed_memory.keep()
        try:
            yield
        finally:
            self._freed_memory.give_back()

    def begin(self) -> None:
        """Copy the global model aside and build what trains and merges."""
        self._freed_memory.keep()
        warn_of_test_metrics(self.trainer)
        self.model.say_buffers()
        say_whose_model(self.trainer, self.federation.algorithm.name, self.roles.kept)
        # a resumed run's optimizers have moved on by now: the settings were compared before
        self._settings = self._compared or self._what_must_not_change()
        self._compared = None
        self._check_same_run()
        settings, data, federation = TrainerSettings(self.trainer), self.data, self.federation
        schedules = [config.scheduler for config in settings.schedulers]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        resident = ResidentModule(
            self.module,
            FreshOptimizers(self.trainer.optimizers, schedules, scaler),
            alone=len(data.training_clients) == 1,
        )
        self.server = self._start_server(resident)
        self._resident = resident
        log = LocalLog(self.module)
        clients = ResidentClients(
            federation, data, self.model, resident, self._training_of(resident, log), log,
            self.server, self.client_store, self.seed, self.workers,
            on_update=self._client_ended if self.listens("on_client_end") else None,
            forget=lambda: forget_failed_step(self.trainer),
        )  # fmt: skip
        self._executor = self.executor_for(clients)
        config = federation.algorithm.server_data
        self._server_training = None
        if config is not None:
            self._server_training = ServerTraining(
                self.trainer, data, self.model, resident, config, self.seed
            )
        commits, self._planned = self.rounds_aggregated, None
        if self._schedule_state is None or self._schedule_state.commit != commits:
            start = self.schedule.start(self.population)
            self._schedule_state = ScheduleState(commits, start.time, start.pending, start.extra)

    def _check_same_run(self) -> None:
        """Check that all workers are in the same round of the same run: nodes are started apart.

        Raises:
            ConfigError: They are not.
        """
        told = self.workers.gather((self.rounds_aggregated, self._settings))
        first, known = told[0]
        for rank, (rounds, settings) in enumerate(told):
            if rounds != first:
                raise ConfigError(
                    f"worker {rank} begins in round {rounds}, worker 0 in round {first}; start all "
                    "nodes with the same ckpt_path."
                )
            for name in sorted(known.keys() | settings.keys()):
                if known.get(name) != settings.get(name):
                    raise ConfigError(
                        f"worker {rank} has {name}: {settings.get(name)}, worker 0 "
                        f"{known.get(name)}; start all nodes with the same config and data."
                    )

    def _add_apart(self) -> bool:
        """Whether each worker adds its own clients' updates, so that none is sent to the others."""
        if self.workers.size == 1:
            return False
        reason = self.server.why_not_apart(not isinstance(self.schedule, Synchronous))
        if reason is None and self.listens("on_client_end"):
            reason = "a callback has on_client_end"
        if reason is not None and self.federation.client_algorithm.sums == "exact":
            rank_zero_info(f"Every update is sent to every worker, because {reason}.")
        return reason is None

    def executor_for(self, clients: ResidentClients) -> Executor:
        """Return what trains the jobs of a commit.

        Args:
            clients: Trains them on this process's resident module.
        """
        kind = SerialExecutor if self.workers.size == 1 else WorkerExecutor
        names = self.data.client_names
        executor = kind(self.federation, clients, self, self.workers, names)
        executor.apart = self._add_apart()
        return executor

    @property
    def planned_steps(self) -> PlannedSteps:
        """How many optimizer steps the clients' updates will have."""
        return PlannedSteps(
            self.trainer, self.federation, self.schedule, self.population, self.data.num_batches
        )

    def _planned_steps(self) -> Callable[[int], int] | None:
        """Return how many steps a client's optimizers live for; ``None`` for one update's."""
        lifetime, planned = self.federation.optimizer_lifetime, self.planned_steps
        if lifetime == "fresh":
            return None
        return planned.of_client if lifetime == "keep" else lambda client: planned.of_run

    def _training_of(self, resident: ResidentModule, log: LocalLog) -> Plans:
        """Return what trains clients, one by one or several at once."""
        algorithm, size = self.federation.client_algorithm, self.federation.clients_per_kernel
        if size == 1:
            return LocalTraining(
                TrainerSettings(self.trainer), self.module, self.data, resident, algorithm,
                self.trainer, log, LocalProgress(self.trainer),
                self._look_at_loss if self.listens("on_local_loss") else None,
                self._planned_steps(),
            )  # fmt: skip
        if algorithm.hooks:
            raise ConfigError(
                f"federation.clients_per_kernel={size}: clients cannot be trained at once, because "
                f"{algorithm.name} takes part in their steps; set it to 1."
            )
        if self.model.differ_by_client:
            raise ConfigError(
                f"federation.clients_per_kernel={size}: clients cannot be trained at once, because "
                f"{type(self.module).__name__} has other networks for other clients; set it to 1."
            )
        return GroupedTraining(
            self.trainer, self.module, self.data, log, size, self._start_of
        )  # fmt: skip

    def _start_of(self, job: Job) -> State:
        """Return the state of the model from which a job's client starts."""
        kept = self._executor.kept.get(job.client) or self.client_store.get(job.client) or {}
        return {**self.server.broadcast(job).state, **self.roles.kept_of(kept)}

    def _start_server(self, resident: ResidentModule) -> Server:
        """Return the server; it continues from the state that a checkpoint had."""
        federation, model, mechanism = self.federation, self.model, None
        released = self._open_ledgers()
        if federation.privacy is not None:
            self.private = self._private_rounds(released)
            mechanism = self.private.mechanism()
        server = Server(
            federation.client_algorithm,
            len(self.data.training_clients),
            federation.aggregator,
            federation.stages,
            self._server_side,
            self.schedule.weight,
            self.schedule.sequential,
            mechanism,
        )
        server.load_state_dict(self._server_state)
        server.start(
            resident.received,
            model.roles.shared,
            model.parameters,
            model.moving,
            self.rounds_aggregated,
        )
        server.load_versions(self._versions)
        return server

    def _open_ledgers(self) -> Ledger:
        """Return what a run with secure noise has released; accounts of clients are corrected."""
        self._ledgers = SecureLedgers(self.federation, self.workers, self._folder_with_logs)
        path = self.trainer.ckpt_path
        return self._ledgers.open(Path(path) if path is not None else None, self.client_store)

    @property
    def writes_ahead(self) -> bool:
        """Whether what a round releases is written down before it is."""
        return self._ledgers.any

    def _folder_with_logs(self) -> Path | None:
        trainer = self.trainer  # every worker must ask
        return Path(trainer.log_dir) if trainer.loggers and trainer.log_dir is not None else None

    def _private_rounds(self, released: Ledger) -> PrivateRounds:
        """Return the run's privacy; the server's state gets the ledger that counts."""
        private = PrivateRounds(
            self.federation,
            len(self.data.training_clients),
            self.clients_per_round(),
            self.trainer.max_epochs,
            self.seed,
            self.workers,
            self._folder_with_logs(),
            cut=bool(getattr(self.trainer, "fast_dev_run", 0)),
        )
        self._server_state = private.resume(self._server_state, self.rounds_aggregated, released)
        private.say()
        return private

    def _server_side(self, version: int) -> ServerSide:
        assert self._resident is not None, "begin() comes first"
        return ServerSide(
            self.module,
            lambda: self.evaluator.batches(CENTRAL, PUBLIC),
            Key(self.seed, "server", round=version),
            self._resident.received,
        )

    def _client_ended(self, update: ClientUpdate) -> None:
        self.fire("on_client_end", update)

    def _look_at_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> None:
        try:
            self.fire("on_local_loss", context, batch, loss)
        except Exception as error:
            raise ServersOwn(error) from error

    # -- a round -------------------------------------------------------------------------------

    def run_round(self) -> Metrics:
        """Train the jobs of the next commit and merge them: the module is the new global model.

        Raises:
            FederationError: If a client failed and the policy is not to continue without it, or
                too few clients are left.
        """
        resident = self._resident
        assert resident is not None, "begin() comes first"
        resident.begin_round()
        self.model.share_unfrozen()
        self.server.share(self.roles.shared)
        if self.private is not None:
            self.private.require_budget(self.server.private_state, self.round)
        self.jobs, after = self._next_commit()
        self._check_arrivals(after)
        self.jobs = self._of_those_that_stay(self.jobs)
        try:
            for update in self._executor.run(self.jobs, self.round, self._least_updates()):
                if update.unsent:
                    raise FrozenChanged(update.unsent)
                self._ledgers.before_merge(update.client, self._executor.kept)
                self.server.receive(update)
            if self._executor.apart:
                self._executor.combine(self.server)
            merged = self.server.aggregate()
        except FrozenChanged as change:  # once in a run, as a rule: they are shared from now on
            self.server.forget_round()
            self._ledgers.before_restart(self.client_store)
            self.model.share_changed(change.keys)
            self.restart_round()
            return self.run_round()
        finally:
            self.server.forget_round()
        if self._server_training is not None:
            merged = self._server_training.run(merged, self.round)
        self.client_store.update(  # may fail on a full disk: the global model is the old one then
            {
                client: {key: value.cpu() for key, value in kept.items()}
                for client, kept in self._executor.kept.items()
            }
        )
        self.server.commit({job.version for job in after.pending})
        resident.commit(merged)
        self._schedule_state, self._planned = after, None
        metrics = self._executor.finish()
        if self.private is not None:
            metrics = {**metrics, **self.private.metrics(self.server.private_state)}
        return {**metrics, **clock_metrics(self.jobs, after)} if self.schedule.timed else metrics

    def jobs_of_round(self) -> int:
        """Return how many client updates make the next commit."""
        jobs = self._of_those_that_stay(self._next_commit()[0])
        return max(len(jobs), 1)  # Lightning ends a run that has no batches

    def _next_commit(self) -> tuple[Sequence[Job], ScheduleState]:
        """Return the jobs of the next commit and the schedule's state after it."""
        state = self._schedule_state
        assert state is not None, "begin() comes first"
        if self._planned is None or self._planned[0] is not state:
            self._planned = (state, *self.schedule.next(state, self.population))
        return self._planned[1:]

    def plan(self) -> Iterator[tuple[Sequence[Job], ScheduleState]]:
        """Yield the jobs of each commit of the run and the schedule's state after it.

        Nothing is trained, and nothing that has been trained matters.
        """
        population = self.population
        state = self.schedule.start(population)
        while True:
            jobs, state = self.schedule.next(state, population)
            yield self._of_those_that_stay(jobs), state

    def _of_those_that_stay(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Return the jobs without those of clients that are left out."""
        left_out = self.federation.leave_out
        return [job for job in jobs if job.client not in left_out] if left_out else jobs

    @property
    def simulated_time(self) -> float | None:
        """Simulated seconds until the newest commit; ``None`` before the first round."""
        return self._schedule_state.time if self._schedule_state is not None else None

    def _least_updates(self) -> int:
        """Return how many of the jobs must succeed; without its only update a commit is empty."""
        alone = self.jobs_per_commit() == 1 and not isinstance(self.schedule, Synchronous)
        if self.private is not None and self.federation.on_client_failure == "skip":
            return 0  # how many fail is their data's doing, and must not show
        return 0 if alone else min(self.federation.min_clients, len(self.jobs))

    def _check_arrivals(self, after: ScheduleState) -> None:
        """Refuse a commit for which too few updates arrive."""
        if self.private is not None:
            return
        least, whole = self.federation.min_clients, self.jobs_per_commit()
        if not self.federation.sized:  # a cohort may have fewer clients, or none
            whole = len(self.jobs) + sum(after.counts.values())
        if len(self.jobs) < min(least, whole):
            reasons = ", ".join(f"{count} {name}" for name, count in after.counts.items() if count)
            raise FederationError(
                f"round {self.round}: {len(self.jobs)} of {whole} updates arrive ({reasons}), "
                f"federation.min_clients={least}; raise federation.schedule.deadline, start more "
                "clients, or lower min_clients."
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """Return what clients keep, server and schedule, and the settings of the run."""
        return Snapshot(
            self.client_store.state_dict(),
            self.server.state_dict(),
            self._settings,
            self.server.versions(),
            self._schedule_state,
        ).state_dict()

    def compare_settings(
        self, checkpoint: Mapping[str, Any], module: pl.LightningModule, data: FederatedDataModule
    ) -> None:
        """Compare what is known before a run starts with the run that left a checkpoint.

        Raises:
            CheckpointError: If that run had other settings.
        """
        saved = loop_state(checkpoint)["extra"]["settings"]
        refuse_changes(
            saved, settings_that_matter(self.trainer, self.federation, module, data, self.seed)
        )

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Compare the settings that a resumed run must share.

        Raises:
            CheckpointError: If the run that left the checkpoint had other ones.
        """
        self._compared = self._what_must_not_change()
        refuse_changes(state["settings"], self._compared)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""
        snapshot = Snapshot.from_dict(state)
        self.load_personal(snapshot.clients)
        self._server_state, self._versions = snapshot.server, snapshot.versions
        self._schedule_state = snapshot.schedule

    def load_personal(self, state: dict[str, Any]) -> None:
        """Take back what clients keep; their files may have moved along with the checkpoint."""
        checkpoint = self.trainer.ckpt_path
        run = Path(checkpoint).parent.parent if checkpoint is not None else None
        self.client_store.load_state_dict(state, moved_to=run and run / CLIENT_STATES)

    @contextmanager
    def showing_global(self) -> Iterator[None]:
        """Show the global model and clean optimizers, even in the middle of a client update."""
        holder = self.borrower or self._resident
        with holder.showing_global() if holder is not None else nullcontext():
            yield

    def teardown(self) -> None:
        """Give the module back as it was: every parameter as trainable as before."""
        super().teardown()
        self._freed_memory.give_back()
        module: pl.LightningModule | None = self.trainer.lightning_module
        if module is not None and self._model is not None:
            self._model.thaw()
        if self._resident is not None:
            self._resident.reset_client()  # of a client whose update could not be merged
            self._server_state = self.server.state_dict()  # another fit continues, as clients do
            self._versions = self.server.versions()
        self._resident = None

    def _store_folder(self) -> Path:
        run = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        return run.absolute() / CLIENT_STATES

    def _what_must_not_change(self) -> Settings:
        settings = settings_that_matter(
            self.trainer, self.federation, self.module, self.data, self.seed
        )
        return settings | self._optimizers
