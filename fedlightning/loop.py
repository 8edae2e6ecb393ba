"""`FederatedLoop`: the walk of a round.

The rule that explains all of it: the LightningModule is the client, a Callback is the server. To
callbacks an epoch is a round and a batch is a client; to the module an epoch is a local epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from fedlightning._lightning import (
    RoundLoop,
    StockStep,
    needs_stock_step,
    transfer_batch,
    transfers_batches,
)
from fedlightning.algorithms import ClientUpdate
from fedlightning.client import LocalFit, LocalResult, ShortStep, Step, evaluate
from fedlightning.datamodules import ClientTask, FederatedDataModule, Split
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation import Federation
from fedlightning.local_log import LocalLog, LogFlags
from fedlightning.module import freeze, resolve_parts
from fedlightning.optimizers import FreshOptimizers
from fedlightning.parts import Parts, State, copy_into, first_non_finite, live_state
from fedlightning.seeding import Key, default_seed
from fedlightning.store import PersonalStates

__all__ = ["FederatedLoop"]

Metrics = Mapping[str, tuple[float, LogFlags]]


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
        self.personal = PersonalStates()
        self._parts: Parts | None = None
        self._trainable: dict[str, bool] = {}
        self._global: State = {}
        self._client_at_work: int | None = None
        self._evaluation_flags: dict[str, LogFlags] = {}
        self.last_accuracies: list[float] = []

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
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, FederatedDataModule):
            got = type(data).__name__ if data is not None else "dataloaders"
            raise ConfigError(
                f"FederatedTrainer needs a FederatedDataModule, which knows whose data is whose, "
                f"got {got}. For arrays or Datasets see FederatedArrays and ClientDatasets in "
                "fedlightning.datamodules."
            )
        return data

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

    def clients_per_round(self) -> int:
        """Return the cohort's size (in a ``fast_dev_run`` of n batches, at most n clients)."""
        size = self.federation.cohort_count(self.data.num_clients)
        fast = int(getattr(self.trainer, "fast_dev_run", 0))
        return min(size, fast) if fast else size

    def cohort(self, round_index: int) -> tuple[int, ...]:
        """Return the clients of a round, in the order in which they train."""
        key = Key(self.seed, "cohort", round=round_index)
        return self.federation.cohort(key, self.data.num_clients, self.clients_per_round())

    # -- before the first round ----------------------------------------------------------------

    def prepare(self) -> None:
        """Freeze what the algorithm does not train; called before the optimizers are built."""
        self._parts = None
        algorithm = self.federation.algorithm
        if algorithm.needs_parts or self.federation.head is not None:
            _ = self.parts
        self._trainable = {
            key: parameter.requires_grad for key, parameter in self.module.named_parameters()
        }
        self._freeze()
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ConfigError(
                f"{type(self.module).__name__} has no trainable parameters left for "
                f"{algorithm.name}."
            )

    def begin(self) -> None:
        """Copy the global model aside and make ready to train clients."""
        self._global = {key: value.clone() for key, value in live_state(self.module).items()}
        self._log_local = self.new_log()
        self._fit = LocalFit(
            self.trainer, self.module, self.data, self.choose_step(), self._log_local
        )
        schedulers = [
            config.scheduler
            for config in self.trainer.lr_scheduler_configs
            if config.interval == "step"
        ]
        self._fresh = FreshOptimizers(self.trainer.optimizers, schedulers)

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
        """Broadcast, client updates, aggregation: the module is the new global model afterwards."""
        self._fresh.mark()
        received: list[ClientUpdate] = []
        kept: dict[int, State] = {}
        updates = self._client_updates(self.cohort(self.round), received, kept)
        copy_into(self._global, self.federation.algorithm.aggregate(updates))
        copy_into(live_state(self.module), self._global)
        self.personal.update(kept)
        return self._mean_metrics(received)

    def _client_updates(
        self, cohort: tuple[int, ...], received: list[ClientUpdate], kept: dict[int, State]
    ) -> Iterator[ClientUpdate]:
        """Train one client after another, as fast as the aggregation asks for them."""
        for position, client in enumerate(cohort):
            task = ClientTask(client, "train", self.data.num_examples(client))
            self.client_starts(task, position)
            try:
                result, update = self._client_update(client)
                if self.federation.algorithm.stateful:
                    kept[client] = self._kept_state()
                received.append(update)
                self.fire("on_client_end", update)
                yield update
            finally:
                self._broadcast()
            outputs = {"loss": result.loss, "client": client, "metrics": dict(update.metrics)}
            self.client_ends(outputs, task, position)

    def _client_update(self, client: int) -> tuple[LocalResult, ClientUpdate]:
        round_index = self.round
        self._client_at_work = client
        copy_into(live_state(self.module), self.personal.get(client) or {})
        self._freeze()
        key = Key(self.seed, "fit", round=round_index, client=client)
        result = self._fit.run(client, key, self.federation.local_epochs)
        shared = self._shared_state()
        if (bad := first_non_finite(shared)) is not None:
            raise FederationError(
                f"client {client}, round {round_index}: {bad} of its update is non-finite after "
                f"{result.steps} steps; lower the learning rate or set trainer.gradient_clip_val."
            )
        return result, ClientUpdate(
            client, shared, self.data.num_examples(client), result.steps, result.metrics
        )

    def _shared_state(self) -> State:
        state, share = live_state(self.module), self.federation.algorithm.share
        return state if share == "full" else {key: state[key] for key in self.parts.keys(share)}

    def _kept_state(self) -> State:
        state = live_state(self.module)
        return {key: state[key].clone() for key in self.federation.algorithm.kept_keys(self.parts)}

    def _broadcast(self) -> None:
        """Make the resident module the global model again."""
        copy_into(live_state(self.module), self._global)
        self._fresh.restore()
        self._client_at_work = None

    def _mean_metrics(self, received: list[ClientUpdate]) -> Metrics:
        """Average the clients' metrics over the cohort's examples."""
        metrics: dict[str, tuple[float, LogFlags]] = {}
        for name, flags in self._log_local.flags.items():
            logged = [update for update in received if name in update.metrics]
            weight = sum(update.num_examples for update in logged)
            if weight:
                total = sum(update.metrics[name] * update.num_examples for update in logged)
                metrics[name] = (total / weight, flags)
        return metrics

    # -- evaluation ----------------------------------------------------------------------------

    def evaluate_client(self, task: ClientTask) -> dict[str, float]:
        """Return what the module logs on one client's validation or test data."""
        log = self.new_log()
        scores = evaluate(
            self.module,
            self.client_batches(task.client, task.split),
            task.split,
            log,
            self.trainer.precision_plugin,
        )
        self._evaluation_flags.update(log.flags)
        return scores

    def client_batches(self, client: int, split: Split) -> Iterator[Any]:
        """Return a client's data in evaluation batches, ready for the module."""
        batches = self.data.batches(client, split, device=self.trainer.strategy.root_device)
        if transfers_batches(self.trainer, self.module):
            return (transfer_batch(self.trainer, batch) for batch in batches)
        return batches

    def new_log(self) -> LocalLog:
        """Return a stand-in for the module's ``log``."""
        return LocalLog(self.module)

    def summarise_clients(self, scores: Mapping[ClientTask, Mapping[str, float]]) -> Metrics:
        """Return the mean over clients of what each of them logged."""
        self.last_accuracies = [v["global/acc"] for v in scores.values() if "global/acc" in v]
        by_name: dict[str, list[float]] = {}
        for values in scores.values():
            for name, value in values.items():
                by_name.setdefault(name, []).append(value)
        return {
            name: (sum(values) / len(values), self._evaluation_flags[name])
            for name, values in by_name.items()
        }

    # -- checkpoints ---------------------------------------------------------------------------

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Show the global model and clean optimizers, even in the middle of a client's turn."""
        if self._client_at_work is None:
            yield
            return
        local = {key: value.clone() for key, value in live_state(self.module).items()}
        copy_into(live_state(self.module), self._global)
        try:
            with self._fresh.at_start():
                yield
        finally:
            copy_into(live_state(self.module), local)

    def extra_state(self) -> dict[str, Any]:
        """Return what clients keep."""
        return {"personal": self.personal.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what clients keep."""
        self.personal.load_state_dict(state["personal"])

    def teardown(self) -> None:
        """Give the module back as it was: every parameter as trainable as before."""
        super().teardown()
        module: pl.LightningModule | None = self.trainer.lightning_module
        for key, parameter in module.named_parameters() if module is not None else ():
            parameter.requires_grad_(self._trainable.get(key, parameter.requires_grad))
        self._global = {}
