"""`FederatedLoop`: the walk of a round.

The rule that explains all of it: the LightningModule is the client, a Callback is the server. To
callbacks an epoch is a round and a batch is a client; to the module an epoch is a local epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from fedlightning._lightning import RoundLoop, StockStep, forget_failed_step, transfer_batch
from fedlightning.algorithms import ClientUpdate
from fedlightning.checkpoints.settings import (
    Settings,
    optimizer_settings,
    refuse_changes,
    settings_that_matter,
)
from fedlightning.client import LocalFit, time_limit
from fedlightning.datamodules import ClientTask, FederatedDataModule
from fedlightning.errors import ConfigError
from fedlightning.evaluation import ClientEvaluator, Metrics, federated_data
from fedlightning.exchange import Trained, train_in_parallel
from fedlightning.faults import (
    Outcome,
    ServersOwn,
    attempt,
    check_tensors,
    check_weight,
    count_clients,
    require_enough,
)
from fedlightning.federation import Federation
from fedlightning.grouped import GroupedFit
from fedlightning.local_log import LocalLog, LogFlags
from fedlightning.model_checks import check_fit, check_lone_examples, trains_by_forward
from fedlightning.module import freeze, names_its_head, resolve_parts
from fedlightning.optimizers import FreshOptimizers
from fedlightning.parts import Parts, State
from fedlightning.resident import Resident
from fedlightning.seeding import Key, default_seed
from fedlightning.steps import ShortStep, Step, needs_stock_step, transfers_batches
from fedlightning.store import PersonalStates
from fedlightning.workers import Workers, longest_first

__all__ = ["FederatedLoop"]


_MOST_LOOKED_AT = 10_000  # clients whose number of examples is checked before the first round


class Visitor(Protocol):
    """Whoever has the resident module for something else than a round."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Show the global model inside the ``with`` block."""


class FederatedLoop(RoundLoop):
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
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.federation = federation
        self.personal = PersonalStates(self._personal_folder, federation.personal_memory_mb * 2**20)
        self.evaluator = ClientEvaluator(trainer, federation.seed)
        self._parts: Parts | None = None
        self.trainable: dict[str, bool] = {}
        self.visitor: Visitor | None = None
        self._resident: Resident | None = None
        self._compared: Settings | None = None

    # -- who and what --------------------------------------------------------------------------

    @property
    def module(self) -> pl.LightningModule:
        """The resident module: the global model between clients, a client's during its turn."""
        return self.trainer.lightning_module

    @property
    def data(self) -> FederatedDataModule:
        """The clients' data.

        Raises:
            ConfigError: If the trainer was given something else.
        """
        return federated_data(self.trainer)

    @property
    def parts(self) -> Parts:
        """Body and head of the module.

        Raises:
            ConfigError: If they cannot be told apart.
        """
        if self._parts is None:
            self._parts = resolve_parts(self.module, self.federation.head)
        return self._parts

    @property
    def seed(self) -> int:
        """The seed of everything in the run that is random."""
        return default_seed(self.federation.seed)

    @property
    def workers(self) -> Workers:
        """The processes that share the work."""
        return Workers.of(self.trainer)

    def clients_per_round(self) -> int:
        """Return the cohort's size (in a ``fast_dev_run`` of n batches, at most n clients)."""
        size = self.federation.cohort_count(self.data.num_clients)
        fast = int(getattr(self.trainer, "fast_dev_run", 0))
        return min(size, fast) if fast else size

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """Return the clients of a round, in the order in which they train."""
        key = Key(self.seed, "cohort", round=round_index)
        size = self.clients_per_round()
        cohort = self.federation.cohort(key, self.data.num_clients, size)
        if len(cohort) < size:
            raise ConfigError(
                f"the cohort of round {round_index} has {len(cohort)} clients, "
                f"federation.cohort_size says {size}."
            )
        return cohort[:size]

    # -- before the first round ----------------------------------------------------------------

    def prepare(self) -> None:
        """Freeze what the algorithm does not train; called before the optimizers are built."""
        self._parts = None
        algorithm = self.federation.algorithm
        if algorithm.needs_parts or self.federation.head is not None or names_its_head(self.module):
            _ = self.parts  # checked before anything is trained, needed or not
        self.trainable = {
            key: parameter.requires_grad for key, parameter in self.module.named_parameters()
        }
        self._freeze()
        if self._wants_channels_last():  # outputs of a convolution take its weight's layout
            self.module.to(memory_format=torch.channels_last)
        if not getattr(self.trainer, "fast_dev_run", 0):
            self.federation.check_min_clients(self.clients_per_round())
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ConfigError(
                f"{type(self.module).__name__} has no trainable parameters left for "
                f"{algorithm.name}."
            )
        self._check_model()

    def _check_model(self) -> None:
        """Show the module two examples before it is trained on thousands."""
        if not trains_by_forward(self.module):
            return
        some = range(min(self.data.num_clients, _MOST_LOOKED_AT))
        sizes = [self.data.num_examples(client) for client in some]
        client = max(some, key=sizes.__getitem__)
        batch = next(self.evaluator.batches(client, "train"), None)
        if not (isinstance(batch, (tuple, list)) and isinstance(batch[0], torch.Tensor)):
            return
        with self.trainer.precision_plugin.forward_context():
            check_fit(self.module, batch[0][:2], self.data.num_classes)
            if not self.data.drop_last:
                check_lone_examples(self.module, batch[0], sizes, self.data.batch_size)

    def _wants_channels_last(self) -> bool:
        if self.federation.channels_last is not None:
            return self.federation.channels_last
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        gains = on_cpu or "16" in str(self.trainer.precision)
        return gains and any(isinstance(child, nn.Conv2d) for child in self.module.modules())

    def begin(self) -> None:
        """Copy the global model aside and make ready to train clients."""
        self._client_log = LocalLog(self.module)
        self._fit = self.choose_fit()
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
        self._resident = Resident(self.module, fresh)

    def choose_fit(self) -> LocalFit | GroupedFit:
        """Return what trains clients, one by one or several at once."""
        trainer, module, data, log = self.trainer, self.module, self.data, self._client_log
        if (size := self.federation.clients_per_kernel) == 1:
            return LocalFit(trainer, module, data, self.choose_step(), log)
        return GroupedFit(
            trainer, module, data, log, size,
            start=lambda client: self._begun().start(self.personal.get(client) or {}),
        )  # fmt: skip

    def choose_step(self) -> Step:
        """Return the shortest training step that honours everything that wants to take part."""
        stock = needs_stock_step(self.trainer, self.module) is not None
        step: Step = StockStep(self.trainer) if stock else ShortStep(self.trainer, self.module)
        if not transfers_batches(self.trainer, self.module):
            return step
        return lambda batch, index, due: step(transfer_batch(self.trainer, batch), index, due)

    def _freeze(self) -> None:
        algorithm = self.federation.algorithm
        if algorithm.train != "full":
            freeze(self.module, self.parts, "head" if algorithm.train == "body" else "body")

    # -- a round -------------------------------------------------------------------------------

    def run_round(self) -> Metrics:
        """Broadcast, client updates, aggregation: the module is the new global model afterwards.

        Raises:
            FederationError: If a client failed and the policy is not to go on without it, or too
                few clients are left.
        """
        resident, federation = self._begun(), self.federation
        resident.begin_round()
        cohort = self.cohort(self.round)
        if isinstance(self._fit, GroupedFit):
            sizes = [self.data.num_examples(client) for client in cohort]
            mine = longest_first(sizes, self.workers.size)[self.workers.rank]
            self._fit.plan([cohort[position] for position in mine])
        outcomes: list[Outcome[Trained]] = []
        train = self._one_by_one if self.workers.size == 1 else self._in_parallel
        updates = self._while_enough(train(cohort, outcomes), cohort, outcomes)
        resident.commit(federation.algorithm.aggregate(updates))
        received = [outcome.result for outcome in outcomes if outcome.result is not None]
        self.personal.update(
            {
                trained.update.client: {key: value.cpu() for key, value in trained.kept.items()}
                for trained in received
                if trained.kept
            }
        )
        counts = count_clients(outcomes) if federation.on_client_failure != "fail" else {}
        return {
            **_mean_metrics(received),
            **{name: (value, LogFlags()) for name, value in counts.items()},
        }

    def _one_by_one(
        self, cohort: tuple[int, ...], outcomes: list[Outcome[Trained]]
    ) -> Iterator[ClientUpdate]:
        """Train one client after another, as fast as the aggregation asks for them."""
        resident = self._begun()
        for position, client in enumerate(cohort):
            task = self._task(client)
            self.client_starts(task, position)
            try:
                outcome = self._try(client)
                self._note(outcome, outcomes)
                if outcome.result is not None:
                    yield outcome.result.update
            finally:
                resident.end_turn()
            self.client_ends(_outputs(outcome), task, position, counts=outcome.result is not None)

    def _in_parallel(
        self, cohort: tuple[int, ...], outcomes: list[Outcome[Trained]]
    ) -> Iterator[ClientUpdate]:
        """Train with all workers; then events and updates come in cohort order on every one."""
        resident, algorithm = self._begun(), self.federation.algorithm
        kept_keys = algorithm.kept_keys(self.parts) if algorithm.stateful else ()

        def train(client: int) -> Outcome[Trained]:
            try:
                outcome = self._try(client)
                if outcome.result is None:
                    return outcome
                update = outcome.result.update
                state = {key: value.clone() for key, value in update.state.items()}
                return replace(
                    outcome, result=replace(outcome.result, update=replace(update, state=state))
                )
            finally:
                resident.end_turn()
                self.fire("on_client_trained")

        trainings = train_in_parallel(
            self.workers,
            cohort,
            [self.data.num_examples(client) for client in cohort],
            train,
            self._shared(),
            resident.view(kept_keys),
            skip=self.federation.on_client_failure == "skip",
            told_to_stop=lambda: self.trainer.received_sigterm,
        )
        self.stop_if_told_to()
        for position, outcome in enumerate(trainings):
            task, trained = self._task(outcome.client), outcome.result
            self.client_starts(task, position)
            light = trained and replace(trained, update=replace(trained.update, state={}))
            self._note(replace(outcome, result=light), outcomes)
            if trained is not None:
                yield trained.update
            self.client_ends(_outputs(outcome), task, position, counts=trained is not None)

    def _while_enough(
        self,
        updates: Iterator[ClientUpdate],
        cohort: tuple[int, ...],
        outcomes: list[Outcome[Trained]],
    ) -> Iterator[ClientUpdate]:
        """Hand on updates; raise in place of the end if they were too few to be merged."""
        yield from updates
        least = min(self.federation.min_clients, len(cohort))
        require_enough(self.round, cohort, outcomes, least)

    def _try(self, client: int) -> Outcome[Trained]:
        """Give a client its turn, and another one while the federation's policy says so."""
        return attempt(client, self.round, self.federation.retries, self._train, self._forget_turn)

    def _note(self, outcome: Outcome[Trained], outcomes: list[Outcome[Trained]]) -> None:
        """Tell of a client's failures; raise if the policy is not to go on without it."""
        outcomes.append(outcome)
        policy = self.federation.on_client_failure
        for failure in outcome.failures:
            if policy == "skip" or failure.retried:
                rank_zero_warn(f"{failure} ({'tried again' if failure.retried else 'skipped'})")
            self.fire("on_client_failure", failure)
        if outcome.result is None and policy != "skip":
            raise outcome.give_up()

    def _forget_turn(self) -> None:
        """Undo a turn that came to no good end: nothing of it may reach the next one."""
        self._client_log.discard()
        self._begun().end_turn()
        forget_failed_step(self.trainer)

    def _train(self, client: int) -> Trained:
        """Give a client its turn; its state is a view of the resident model."""
        federation, algorithm, resident = self.federation, self.federation.algorithm, self._begun()
        resident.take_turn(self.personal.get(client) or {})
        self._freeze()
        key = Key(self.seed, "fit", round=self.round, client=client)
        self.workers.works_on(client, self.round)
        result = self._fit.run(client, key, federation.local_epochs, self._after_step())
        check_tensors(resident.as_the_client_left_it(), resident.view(), result.steps)
        resident.settle()
        update = ClientUpdate(
            client, self._shared(), self.data.num_examples(client), result.steps, result.metrics
        )
        check_weight(update.num_examples, algorithm.weight(update))
        if self.listens("on_client_end"):
            try:
                self.fire("on_client_end", update)
            except Exception as error:
                raise ServersOwn(error) from error
            check_tensors(update.state, self._shared(), result.steps)
        kept = resident.copy(algorithm.kept_keys(self.parts)) if algorithm.stateful else {}
        return Trained(update, kept, dict(self._client_log.flags))

    def _after_step(self) -> Callable[[int], None] | None:
        """Return what ends a client's training early: its time is over, or a worker is lost."""
        in_time, workers = time_limit(self.federation.client_timeout), self.workers
        if workers.size == 1:
            return in_time

        def check(steps: int) -> None:
            workers.check()
            if in_time is not None:
                in_time(steps)

        return check

    def _task(self, client: int) -> ClientTask:
        return ClientTask(client, "train", self.data.num_examples(client))

    def _shared(self) -> State:
        share = self.federation.algorithm.share
        return dict(self._begun().view(None if share == "full" else self.parts.keys(share)))

    # -- checkpoints ---------------------------------------------------------------------------

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Show the global model and clean optimizers, even in the middle of a client's turn."""
        holder = self.visitor or self._resident
        with holder.at_rest() if holder is not None else nullcontext():
            yield

    def _begun(self) -> Resident:
        assert self._resident is not None, "begin() comes first"
        return self._resident

    def extra_state(self) -> dict[str, Any]:
        """Return what clients keep, and the settings that a resumed run must share."""
        return {"personal": self.personal.state_dict(), "settings": self._settings}

    def compare_settings(
        self, checkpoint: Mapping[str, Any], module: pl.LightningModule, data: FederatedDataModule
    ) -> None:
        """Compare what is known before a run starts with the run that left a checkpoint.

        Raises:
            CheckpointError: If that run had other settings.
        """
        saved = checkpoint["loops"]["fit_loop"]["state_dict"]["extra"]["settings"]
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
        """Take back what clients keep."""
        self.load_personal(state["personal"])

    def load_personal(self, state: dict[str, Any]) -> None:
        """Take back what clients keep; their files may have moved along with the checkpoint."""
        checkpoint = self.trainer.ckpt_path
        run = Path(checkpoint).parent.parent if checkpoint is not None else None
        self.personal.load_state_dict(state, moved_to=run and run / "personal")

    def _personal_folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir).absolute() / "personal"

    def _what_must_not_change(self) -> Settings:
        settings = settings_that_matter(
            self.trainer, self.federation, self.module, self.data, self.seed
        )
        return settings | optimizer_settings(self.trainer.optimizers)

    def teardown(self) -> None:
        """Give the module back as it was: every parameter as trainable as before."""
        super().teardown()
        module: pl.LightningModule | None = self.trainer.lightning_module
        for key, parameter in module.named_parameters() if module is not None else ():
            parameter.requires_grad_(self.trainable.get(key, parameter.requires_grad))
        if self._resident is not None:
            self._resident.end_turn()  # of a client whose update could not be merged
        self._resident = None


def _outputs(outcome: Outcome[Trained]) -> dict[str, Any]:
    """Return what ``on_train_batch_end`` gets; of a client that failed, its failure."""
    if outcome.result is not None:
        return outcome.result.update.outputs
    nothing = ClientUpdate(outcome.client, {}, 0).outputs
    return {**nothing, "failure": outcome.failures[-1]}


def _mean_metrics(received: list[Trained]) -> Metrics:
    """Average the clients' metrics over the cohort's examples."""
    metrics: dict[str, tuple[float, LogFlags]] = {}
    for name, flags in {n: f for trained in received for n, f in trained.flags.items()}.items():
        logged = [trained.update for trained in received if name in trained.update.metrics]
        weight = sum(update.num_examples for update in logged)
        if weight:
            total = sum(update.metrics[name] * update.num_examples for update in logged)
            metrics[name] = (total / weight, flags)
    return metrics
