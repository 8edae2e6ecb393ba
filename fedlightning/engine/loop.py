"""`FederatedLoop`: the walk of a round.

The rule that explains all of it: the LightningModule is the client, a Callback is the server. To
callbacks an epoch is a round and a batch is a client; to the module an epoch is a local epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import pytorch_lightning as pl

from fedlightning.core.metrics import Metrics
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.core.seeding import Key
from fedlightning.core.state import live_state
from fedlightning.engine._lightning.stock_step import LightningStep
from fedlightning.engine.checks.module import check_module
from fedlightning.engine.checks.monitors import warn_of_test_metrics
from fedlightning.engine.evaluation import ClientEvaluator
from fedlightning.engine.executor import CohortTraining
from fedlightning.engine.frozen import FrozenChanged
from fedlightning.engine.grouped.training import GroupedTraining
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.local_training import LocalTraining
from fedlightning.engine.method_training import MethodFit
from fedlightning.engine.resident import ResidentModule
from fedlightning.engine.resume.snapshot import ResumableLoop
from fedlightning.engine.server_training import ServerTraining
from fedlightning.engine.steps import DirectStep, Step, needs_lightning_step, through_transfer
from fedlightning.engine.workers.cohort_exchange import Trained
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import ConfigError
from fedlightning.federation.failures import Attempt
from fedlightning.federation.server import Server
from fedlightning.federation.settings import Federation
from fedlightning.models.base import names_its_head

__all__ = ["FederatedLoop"]


class ModuleBorrower(Protocol):
    """Whoever has the resident module for something else than a round."""

    def showing_global(self) -> AbstractContextManager[None]:
        """Show the global model inside the ``with`` block."""


class FederatedLoop(ResumableLoop):
    """Trains a cohort's clients on one resident module and merges what they send.

    Args:
        trainer: The trainer that runs it.
        federation: How clients learn together.
        min_epochs: Least number of rounds.
        max_epochs: Number of rounds.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        federation: Federation,
        min_epochs: int | None = 0,
        max_epochs: int | None = None,
    ) -> None:
        super().__init__(trainer, federation, min_epochs=min_epochs, max_epochs=max_epochs)
        self.evaluator = ClientEvaluator(trainer, federation.seed)
        self.trainable: dict[str, bool] = {}
        self.borrower: ModuleBorrower | None = None
        self._resident: ResidentModule | None = None

    # -- who and what --------------------------------------------------------------------------

    @property
    def workers(self) -> Workers:
        """The processes that share the work."""
        return Workers.of(self.trainer)

    def clients_per_round(self) -> int:
        """Return the cohort's size (in a ``fast_dev_run`` of n batches, at most n clients)."""
        size = self.federation.cohort_count(len(self.data.training_clients))
        fast = int(getattr(self.trainer, "fast_dev_run", 0))
        return min(size, fast) if fast else size

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """Return the clients of a round, in the order in which they train."""
        key = Key(self.seed, "cohort", round=round_index)
        size = self.clients_per_round()
        clients = self.data.training_clients
        cohort = self.federation.cohort(key, self.data.num_clients, size, clients)
        if len(cohort) < size:
            raise ConfigError(
                f"the cohort of round {round_index} has {len(cohort)} clients, "
                f"federation.cohort_size says {size}."
            )
        return cohort[:size]

    # -- before the first round ----------------------------------------------------------------

    def prepare(self) -> None:
        """Freeze what the algorithm does not train; called before the optimizers are built."""
        self._parts = self._undivided = self._roles = None
        algorithm = self.federation.algorithm
        if algorithm.needs_parts or self.federation.head is not None or names_its_head(self.module):
            _ = self.parts  # checked before anything is trained, needed or not
        self.trainable = {
            key: parameter.requires_grad for key, parameter in self.module.named_parameters()
        }
        self._roles = self._find_roles()
        self.leave_out_frozen()
        self.freeze()
        self.set_memory_format()
        if not getattr(self.trainer, "fast_dev_run", 0):
            self.federation.check_min_clients(self.clients_per_round())
            if self.federation.aggregator is not None:
                self.federation.aggregator.check(self.clients_per_round())
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ConfigError(
                f"{type(self.module).__name__} has no trainable parameters left for "
                f"{algorithm.name}."
            )
        check_module(self.trainer, self.module, self.data, self.evaluator)

    def _start_server(self) -> Server:
        """Return the server; it goes on from the state that a checkpoint had."""
        algorithm, aggregator = self.federation.algorithm, self.federation.aggregator
        server = Server(algorithm, len(self.data.training_clients), aggregator)
        keys = {*self.roles.shared, *self.frozen.keys}  # a callback may unfreeze some of them
        shared = [key for key, _ in self.module.named_parameters() if key in keys]
        trained = set(self.roles.trained)
        moving = [key for key in shared if key in trained and self.trainable[key]]
        server.load_state_dict(self._server_state)
        server.start(live_state(self.module), shared, moving)
        return server

    def begin(self) -> None:
        """Copy the global model aside and make ready to train clients."""
        warn_of_test_metrics(self.trainer)
        schedulers = [
            config.scheduler
            for config in self.trainer.lr_scheduler_configs
            if config.interval == "step"
        ]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        fresh = FreshOptimizers(self.trainer.optimizers, schedulers, scaler)
        # a resumed run's optimizers have moved on by now: the settings were compared before
        self._settings = self._compared or self._what_must_not_change()
        self._compared = None
        self._resident, log = ResidentModule(self.module, fresh), LocalLog(self.module)
        self.server = self._start_server()
        fit = self._choose_fit(self._resident, log)
        settings = self.federation.algorithm.server_data
        self._server_fit = ServerTraining(self, self._resident, settings) if settings else None
        self._training = CohortTraining(self, self._resident, fit, log)

    def _choose_fit(
        self, resident: ResidentModule, log: LocalLog
    ) -> LocalTraining | GroupedTraining | MethodFit:
        """Return what trains clients, one by one or several at once."""
        trainer, module, data = self.trainer, self.module, self.data
        algorithm, size = self.federation.algorithm, self.federation.clients_per_kernel
        if size > 1 and algorithm.local:
            raise ConfigError(
                f"federation.clients_per_kernel={size}: clients cannot be trained at once, because "
                f"{algorithm.name} takes part in their steps; set it to 1."
            )
        if algorithm.local:
            return MethodFit(self, resident, log)
        if size == 1:
            return LocalTraining(trainer, module, data, self.make_step(), log)
        return GroupedTraining(
            trainer, module, data, log, size,
            start=lambda client: resident.start(self.kept_part(client)),
        )  # fmt: skip

    def make_step(self, adjust: Callable[[], None] | None = None) -> Step:
        """Return the shortest training step that honours everything that wants to take part.

        Args:
            adjust: Changes gradients before they are clipped and the optimizer steps.
        """
        stock = needs_lightning_step(self.trainer, self.module) is not None
        step: Step = (
            LightningStep(self.trainer, adjust)
            if stock
            else DirectStep(self.trainer, self.module, adjust)
        )
        return through_transfer(self.trainer, self.module, step)

    # -- a round -------------------------------------------------------------------------------

    def run_round(self) -> Metrics:
        """Broadcast, client updates, aggregation: the module is the new global model afterwards.

        Raises:
            FederationError: If a client failed and the policy is not to go on without it, or too
                few clients are left.
        """
        resident, training = self._begun()
        resident.begin_round()
        self.share_unfrozen()
        outcomes: list[Attempt[Trained]] = []
        updates = training.run(self.cohort(self.round), outcomes)
        try:
            merged = self.server.merge(updates, resident.received, self.roles.shared)
        except FrozenChanged as change:
            self.share_changed(change.keys)
            self._count_updates(self._updates_before)
            self.epoch_loop.batch_progress.reset_on_run()
            return self.run_round()
        if self._server_fit is not None:
            merged = self._server_fit.run(merged)
        self.personal.update(  # may fail on a full disk: the global model is the old one then
            {
                outcome.client: {key: value.cpu() for key, value in outcome.result.kept.items()}
                for outcome in outcomes
                if outcome.result is not None and outcome.result.kept
            }
        )
        resident.commit(merged)
        self.server.commit()
        return training.metrics(outcomes)

    # -- checkpoints ---------------------------------------------------------------------------

    @contextmanager
    def showing_global(self) -> Iterator[None]:
        """Show the global model and clean optimizers, even in the middle of a client's turn."""
        holder = self.borrower or self._resident
        with holder.showing_global() if holder is not None else nullcontext():
            yield

    def _begun(self) -> tuple[ResidentModule, CohortTraining]:
        assert self._resident is not None, "begin() comes first"
        return self._resident, self._training

    def teardown(self) -> None:
        """Give the module back as it was: every parameter as trainable as before."""
        super().teardown()
        module: pl.LightningModule | None = self.trainer.lightning_module
        for key, parameter in module.named_parameters() if module is not None else ():
            parameter.requires_grad_(self.trainable.get(key, parameter.requires_grad))
        if self._resident is not None:
            self._resident.reset_client()  # of a client whose update could not be merged
            self._server_state = self.server.state_dict()  # another fit goes on, as clients do
        self._resident = None
