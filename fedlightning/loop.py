"""`FederatedLoop`: the walk of a round.

The rule that explains all of it: the LightningModule is the client, a Callback is the server. To
callbacks an epoch is a round and a batch is a client; to the module an epoch is a local epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import nn

from fedlightning._lightning import RoundLoop, StockStep
from fedlightning.algorithms.roles import ModelKeys, Roles, norm_keys
from fedlightning.checkpoints.settings import (
    Settings,
    optimizer_settings,
    refuse_changes,
    settings_that_matter,
)
from fedlightning.client import LocalFit
from fedlightning.cohort_training import CohortTraining
from fedlightning.datamodules import FederatedDataModule
from fedlightning.errors import ConfigError
from fedlightning.evaluation import ClientEvaluator, Metrics, federated_data
from fedlightning.exchange import Trained
from fedlightning.faults import (
    Outcome,
)
from fedlightning.federation import Federation
from fedlightning.grouped import GroupedFit
from fedlightning.local_log import LocalLog
from fedlightning.model_checks import check_module
from fedlightning.model_selection import warn_of_test_metrics
from fedlightning.module import freeze, names_its_head, resolve_parts
from fedlightning.optimizers import FreshOptimizers
from fedlightning.parts import Parts, State, live_state
from fedlightning.resident import Resident
from fedlightning.seeding import Key, default_seed
from fedlightning.server import Server
from fedlightning.server_training import ServerFit
from fedlightning.steps import ShortStep, Step, needs_stock_step, through_transfer
from fedlightning.store import PersonalStates
from fedlightning.turns import MethodFit
from fedlightning.workers import Workers

__all__ = ["FederatedLoop"]


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
        self.server: Server
        self._roles: Roles | None = None
        self._parts: Parts | None = None
        self._server_state: State = {}
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
    def roles(self) -> Roles:
        """Which of the module's keys are trained, shared and kept.

        Raises:
            ConfigError: If body and head cannot be told apart, and have to be.
        """
        if self._roles is None:
            self._roles = self._find_roles()
        return self._roles

    @property
    def parameters(self) -> frozenset[str]:
        """The keys of the module's parameters; the other keys are buffers'."""
        return frozenset(key for key, _ in self.module.named_parameters())

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
        self._parts = self._roles = None
        algorithm = self.federation.algorithm
        if algorithm.needs_parts or self.federation.head is not None or names_its_head(self.module):
            _ = self.parts  # checked before anything is trained, needed or not
        self.trainable = {
            key: parameter.requires_grad for key, parameter in self.module.named_parameters()
        }
        self._roles = self._find_roles()
        self.freeze()
        self.lay_out()
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

    def _find_roles(self) -> Roles:
        algorithm, module = self.federation.algorithm, self.module
        norms = norm_keys(module) if algorithm.own_norms else ()
        if algorithm.own_norms and not norms:
            raise ConfigError(
                f"{algorithm.name} leaves BatchNorm layers to the clients, and "
                f"{type(module).__name__} has none."
            )
        known = algorithm.needs_parts or self._parts is not None
        parts = self.parts if known else Parts(body=tuple(live_state(module)), head=())
        return algorithm.roles(ModelKeys(parts, norms))

    def _start_server(self) -> Server:
        """Return the server; it goes on from the state that a checkpoint had."""
        algorithm, aggregator = self.federation.algorithm, self.federation.aggregator
        server = Server(algorithm, len(self.data.training_clients), aggregator)
        shared = [key for key, _ in self.module.named_parameters() if key in set(self.roles.shared)]
        trained = set(self.roles.trained)
        moving = [key for key in shared if key in trained and self.trainable[key]]
        server.load_state_dict(self._server_state)
        server.start(live_state(self.module), shared, moving)
        return server

    def lay_out(self) -> None:
        """Lay the weights out as they are trained: a convolution's output takes its layout."""
        if self._wants_channels_last():
            self.module.to(memory_format=torch.channels_last)

    def _wants_channels_last(self) -> bool:
        if self.federation.channels_last is not None:
            return self.federation.channels_last
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        gains = on_cpu or "16" in str(self.trainer.precision)
        return gains and any(isinstance(child, nn.Conv2d) for child in self.module.modules())

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
        self._resident, log = Resident(self.module, fresh), LocalLog(self.module)
        self.server = self._start_server()
        fit = self._choose_fit(self._resident, log)
        settings = self.federation.algorithm.server_data
        self._server_fit = ServerFit(self, self._resident, settings) if settings else None
        self._training = CohortTraining(self, self._resident, fit, log)

    def _choose_fit(self, resident: Resident, log: LocalLog) -> LocalFit | GroupedFit | MethodFit:
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
            return LocalFit(trainer, module, data, self.choose_step(), log)
        return GroupedFit(
            trainer, module, data, log, size,
            start=lambda client: resident.start(self.kept_part(client)),
        )  # fmt: skip

    def kept_part(self, client: int) -> State:
        """Return the parts of the model that a client has kept."""
        kept = self.personal.get(client) or {}
        return {key: kept[key] for key in self.roles.kept if key in kept}

    def personal_model(self, client: int) -> State:
        """Return the values in which a client's own model differs from the global one.

        The module must hold the global model.
        """
        kept = self.personal.get(client)
        if not kept:
            return {}
        own = {key: kept[key] for key in self.roles.kept if key in kept}
        model = {**live_state(self.module), **own}
        for method in self.federation.algorithm.local:
            own |= method.personal(kept, model)
        return own

    def choose_step(self, adjust: Callable[[], None] | None = None) -> Step:
        """Return the shortest training step that honours everything that wants to take part.

        Args:
            adjust: Changes gradients before they are clipped and the optimizer steps.
        """
        stock = needs_stock_step(self.trainer, self.module) is not None
        step: Step = (
            StockStep(self.trainer, adjust)
            if stock
            else ShortStep(self.trainer, self.module, adjust)
        )
        return through_transfer(self.trainer, self.module, step)

    def freeze(self) -> None:
        """Freeze what the algorithm does not train."""
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
        resident, training = self._begun()
        resident.begin_round()
        outcomes: list[Outcome[Trained]] = []
        updates = training.run(self.cohort(self.round), outcomes)
        merged = self.server.merge(updates, resident.received, self.roles.shared)
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
    def at_rest(self) -> Iterator[None]:
        """Show the global model and clean optimizers, even in the middle of a client's turn."""
        holder = self.visitor or self._resident
        with holder.at_rest() if holder is not None else nullcontext():
            yield

    def _begun(self) -> tuple[Resident, CohortTraining]:
        assert self._resident is not None, "begin() comes first"
        return self._resident, self._training

    def extra_state(self) -> dict[str, Any]:
        """Return what clients keep, and the settings that a resumed run must share."""
        return {
            "personal": self.personal.state_dict(),
            "server": self.server.state_dict(),
            "settings": self._settings,
        }

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
        """Take back what clients keep and what the server remembers."""
        self.load_personal(state["personal"])
        self._server_state = state.get("server", {})

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
            self._server_state = self.server.state_dict()  # another fit goes on, as clients do
        self._resident = None
