"""Everything that relies on Lightning's private names, and nothing else.

Lightning took loop customisation out of its public API in 2.0, but the names below have kept their
meaning since 2.1. ``tests/test_lightning_private.py`` fails with the name of one that has moved.
"""

from __future__ import annotations

import signal
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.trainer import call
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fedlightning.core.metrics import LogFlags
from fedlightning.core.overrides import overrides
from fedlightning.datamodules import ClientTask
from fedlightning.engine.workers.collectives import Workers

__all__ = ["Phase", "RoundLoop", "any_callback_has"]


# Callbacks that take a model into an average after each step; Lightning has them since 2.6.
_AVERAGING: tuple[type[pl.Callback], ...] = tuple(
    vars(pl.callbacks)[name] for name in ("WeightAveraging",) if hasattr(pl.callbacks, name)
)


class Phase(str, Enum):
    """How far a round has come, and so where a run resumed from a checkpoint goes on."""

    TRAINING = "training"  # nothing merged yet: the round is run again
    AGGREGATED = "aggregated"  # the global model is the round's; validation is still to come
    VALIDATED = "validated"
    FINISHED = "finished"  # metrics are logged; the next round is to come


class RoundLoop(_FitLoop):
    """Lightning's fit loop with an epoch that is a round and a batch that is a client.

    A round is a transaction: a checkpoint holds its start or its result, never something in
    between.

    Attributes:
        on_begun: Called once per run, when nothing can refuse it any more, before any callback.
    """

    def __init__(
        self, trainer: pl.Trainer, min_epochs: int | None = 0, max_epochs: int | None = None
    ) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.phase = Phase.FINISHED
        self.updates = 0
        self._updates_before = 0
        self.accumulating = False
        self._observed = True  # by callbacks, client by client
        self.on_begun: Callable[[], None] = _nothing
        self._round_metrics: dict[str, tuple[float, LogFlags]] = {}
        self._saved: dict[str, Any] | None = None

    # -- what a subclass says ------------------------------------------------------------------

    @property
    @abstractmethod
    def workers(self) -> Workers:
        """The processes that share the work."""

    @abstractmethod
    def jobs_per_commit(self) -> int:
        """Return how many client updates make a commit."""

    @abstractmethod
    def jobs_of_round(self) -> int:
        """Return how many client updates the round that starts has: as many, or fewer."""

    @abstractmethod
    def begin(self) -> None:
        """Prepare the first round: called once, after checkpoint and optimizers are in place."""

    @abstractmethod
    def run_round(self) -> Mapping[str, tuple[float, LogFlags]]:
        """Train one round, put its result into the module, and return the round's metrics."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Prepare the module for an evaluation outside of ``fit``."""
        return nullcontext()

    def extra_state(self) -> dict[str, Any]:
        """Return what else a checkpoint holds: primitives and tensors."""
        return {}

    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse what :meth:`extra_state` gave, if this run cannot continue from it."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""

    # -- the walk of a run ---------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The round under way, from 0."""
        return int(self.epoch_progress.current.completed)

    @property
    def next_round(self) -> int:
        """The round with which a run resumed now would continue."""
        return int(self.epoch_progress.state_dict()["current"]["processed"])

    @property
    def rounds_aggregated(self) -> int:
        """How many rounds have a result; that of the last one may still have to be evaluated."""
        merged = self.phase in (Phase.AGGREGATED, Phase.VALIDATED)
        return int(self.trainer.current_epoch) + merged

    def setup_data(self) -> None:
        """Count the clients of a round; they take the place of Lightning's train batches."""
        if self.trainer.limit_train_batches == 0:
            return
        self.max_batches = self.jobs_per_commit()
        self.trainer.val_check_batch = self.max_batches

    def reset(self) -> None:
        """Go to where the checkpoint, if there is one, left off."""
        torch.set_grad_enabled(True)
        saved, self._saved = self._saved, None
        if saved is None:
            return
        self.phase = Phase(saved["phase"])
        self._go_to_round(saved["round"])
        self._count_updates(saved["updates"])
        self._round_metrics = {
            name: (value, LogFlags(prog_bar, logger))
            for name, (value, prog_bar, logger) in saved["metrics"].items()
        }
        if saved["stopped"]:  # by early stopping, which is not asked again before the next round
            self.trainer.should_stop = any(
                isinstance(callback, EarlyStopping) and callback.stopped_epoch > 0
                for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            )
        self.trainer._logger_connector._callback_metrics.update(
            {name: torch.tensor(value) for name, value in saved["callback_metrics"].items()}
        )
        self.load_extra_state(saved["extra"])

    def on_run_start(self) -> None:
        """Tell the callbacks that training starts; the module's own hook is the clients'."""
        trainer = self.trainer
        if self.epoch_loop._should_check_val_epoch() and trainer.val_dataloaders is None:
            trainer.validating = True
            self.epoch_loop.val_loop.setup_data()
            trainer.training = True
        if self.workers.size > 1:
            _only_note_sigterm(trainer)
        self.begin()
        self.on_begun()
        call._call_callback_hooks(trainer, "on_train_start")
        call._call_strategy_hook(trainer, "on_train_start")

    def on_advance_start(self) -> None:
        """Start a round, unless a resumed one is past its start."""
        self.epoch_progress.increment_ready()
        if self.phase in (Phase.FINISHED, Phase.TRAINING):
            self.phase = Phase.TRAINING
            self._updates_before = self.updates
            self.max_batches = self.jobs_of_round()
            call._call_callback_hooks(self.trainer, "on_train_epoch_start")
        self.epoch_progress.increment_started()

    def advance(self) -> None:
        """Run one round: clients, aggregation, validation."""
        with self.trainer.profiler.profile("run_training_epoch"):  # type: ignore[attr-defined]
            if self.phase is Phase.TRAINING:
                self.epoch_loop.batch_progress.reset_on_run()
                hooks = "on_train_batch_start", "on_train_batch_end"
                self._observed = any_callback_has(self.trainer, hooks)
                self._round_metrics = dict(self.run_round())
                # the first moment at which a checkpoint may hold the round's result
                with _without_advice() if self.updates == 0 else nullcontext():
                    self.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
                self.phase = Phase.AGGREGATED
                self._average_weights()
                self.fire("on_aggregate_end")
            for name, (value, flags) in self._round_metrics.items():
                _log_as(self.trainer.lightning_module, "training_step", name, value, flags)
            if self.phase is Phase.AGGREGATED and self.epoch_loop._should_check_val_epoch():
                self._validate()
            self.phase = Phase.VALIDATED

    def on_advance_end(self) -> None:
        """End a round: callbacks, loggers, and last of all the checkpoint."""
        trainer = self.trainer
        connector = trainer._logger_connector
        connector.epoch_end_reached()
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=False)
        connector.on_epoch_end()
        self.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        connector.update_train_epoch_metrics()
        self.epoch_progress.increment_processed()
        self.phase = Phase.FINISHED
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=True)
        self.epoch_progress.increment_completed()
        self.epoch_loop._batches_that_stepped = self.round
        self.stop_if_told_to()

    def told_to_stop(self) -> bool:
        """Whether this worker has received a SIGTERM."""
        return bool(self.trainer.received_sigterm)

    def stop_if_told_to(self) -> None:
        """Stop the run after a SIGTERM to any of the workers; all of them must call this."""
        if any(self.workers.gather(self.trainer.received_sigterm)):
            raise SIGTERMException

    def on_run_end(self) -> None:
        """Tell the callbacks that training ended."""
        call._call_callback_hooks(self.trainer, "on_train_end")
        call._call_strategy_hook(self.trainer, "on_train_end")

    # -- the server's events within a round ----------------------------------------------------

    def client_starts(self, task: ClientTask, position: int) -> None:
        """A client of the cohort starts: to callbacks, a train batch."""
        self.epoch_loop.batch_progress.increment_ready()
        if self._observed:
            self.trainer._logger_connector.on_batch_start(task)
            self.epoch_loop._results.batch_size = task.num_examples
            call._call_callback_hooks(self.trainer, "on_train_batch_start", task, position)
        self.epoch_loop.batch_progress.increment_started()

    def client_ends(
        self, outputs: Mapping[str, Any], task: ClientTask, position: int, counts: bool = True
    ) -> None:
        """A client is done: its update counts as one step, if it gave one."""
        progress = self.epoch_loop.batch_progress
        progress.increment_processed()
        progress.is_last_batch = position + 1 == self.max_batches
        self._count_updates(self.updates + counts)
        if self._observed:
            with _without(self.trainer, _AVERAGING):  # they wait for the round's result
                call._call_callback_hooks(
                    self.trainer, "on_train_batch_end", outputs, task, position
                )
            self.trainer._logger_connector.on_batch_end()
        progress.increment_completed()
        if self._observed:
            self.trainer._logger_connector.update_train_step_metrics()
        if self.workers.size == 1:
            self.stop_if_told_to()

    def _average_weights(self) -> None:
        """Show the merged model to callbacks that average weights; to them a step is a round."""
        trainer, updates, index = self.trainer, self.updates, self.round
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._count_updates(index + 1)
        try:
            for callback in callbacks:
                if isinstance(callback, _AVERAGING):
                    callback.on_train_batch_end(trainer, trainer.lightning_module, {}, None, index)
        finally:
            self._count_updates(updates)

    def restart_round(self) -> None:
        """Count the client updates of the round anew."""
        self._count_updates(self._updates_before)
        self.epoch_loop.batch_progress.reset_on_run()

    def listens(self, hook: str) -> bool:
        """Whether a callback has this hook."""
        return any(hasattr(callback, hook) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]

    def fire(self, hook: str, *args: Any) -> None:
        """Call a hook that only federated callbacks have (``on_client_end``, ...)."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            own = getattr(callback, hook, None)
            if own is not None:
                own(self.trainer, self.trainer.lightning_module, *args)

    # -- checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Return the round, how far it has come, and what its end needs."""
        callback_metrics = {
            name: float(value)
            for name, value in self.trainer._logger_connector._callback_metrics.items()
            if isinstance(value, torch.Tensor)
        }
        return {
            "phase": self.phase.value,
            "round": self.next_round,
            "updates": (self._updates_before if self.phase is Phase.TRAINING else self.updates),
            "metrics": {
                name: (value, flags.prog_bar, flags.logger)
                for name, (value, flags) in self._round_metrics.items()
            },
            "callback_metrics": callback_metrics,
            "stopped": bool(self.trainer.should_stop),
            "extra": self.extra_state(),
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the run starts."""
        self.check_extra_state(state_dict["extra"])
        self._saved = state_dict

    # -- small print ---------------------------------------------------------------------------

    def _should_accumulate(self) -> bool:
        return self.accumulating

    def _validate(self) -> None:
        trainer, val_loop = self.trainer, self.epoch_loop.val_loop
        first_iteration = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        call._call_lightning_module_hook(trainer, "on_validation_model_zero_grad")
        val_loop.restarting = False
        val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first_iteration

    def _go_to_round(self, index: int) -> None:
        for counts in (self.epoch_progress.total, self.epoch_progress.current):
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, index)
        self.epoch_loop._batches_that_stepped = index

    def _count_updates(self, updates: int) -> None:
        """Set ``trainer.global_step``: client updates received, however many steps they took."""
        self.updates = updates
        automatic = self.epoch_loop.automatic_optimization.optim_progress.optimizer.step
        manual = self.epoch_loop.manual_optimization.optim_step_progress
        for counts in (automatic.total, manual.total):
            counts.ready = counts.completed = updates


@contextmanager
def _without(trainer: pl.Trainer, kinds: tuple[type[pl.Callback], ...]) -> Iterator[None]:
    """Have a trainer's callbacks of some kinds not called inside the ``with`` block."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [callback for callback in callbacks if not isinstance(callback, kinds)]
    if len(others) == len(callbacks):
        yield
        return
    trainer.callbacks = others  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Not be told, inside the ``with`` block, that nobody has trained: rounds may be empty."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        yield


def any_callback_has(trainer: pl.Trainer, hooks: Iterable[str]) -> bool:
    """Whether any of a trainer's callbacks has one of these hooks of its own."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(overrides(callback, hook, pl.Callback) for hook in hooks for callback in callbacks)


def _nothing() -> None:
    """Do nothing."""


def _only_note_sigterm(trainer: pl.Trainer) -> None:
    """Have SIGTERM only noted, by all: Lightning's handler waits for ranks that may be busy."""
    connector = trainer._signal_connector
    watchdog = getattr(trainer.strategy, "watchdog", None)

    def note(*_: Any) -> None:
        if not connector.received_sigterm and watchdog is not None:
            watchdog.pass_on_sigterm()
        connector.received_sigterm = True

    def note_others() -> None:
        connector.received_sigterm = True

    if watchdog is not None:
        watchdog.on_sigterm = note_others

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, note)


def _log_as(module: pl.LightningModule, fx: str, name: str, value: float, flags: LogFlags) -> None:
    """Log one number for the whole round, as if from the hook ``fx``."""
    before, module._current_fx_name = module._current_fx_name, fx
    try:
        module.log(
            name,
            value,
            prog_bar=flags.prog_bar,
            logger=flags.logger,
            on_step=False,
            on_epoch=True,
            batch_size=1,
            add_dataloader_idx=False,
        )
    finally:
        module._current_fx_name = before
