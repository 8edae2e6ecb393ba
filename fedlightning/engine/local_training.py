"""Local training: the epochs and batches of one client update, with an algorithm's hooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.context import ClientContext
from fedlightning.core.batches import Batch, Split
from fedlightning.core.lr_schedules import NeedsTotal
from fedlightning.core.module_snapshot import ModuleSnapshot
from fedlightning.core.overrides import overrides
from fedlightning.core.seeding import Key, forked_generators
from fedlightning.core.state import State, copy_into
from fedlightning.engine.local_log import EPOCH, TRAINING_BATCH, LocalLog
from fedlightning.engine.local_settings import TrainingSettings
from fedlightning.engine.resident import LIGHTNING_ATTRIBUTES, ResidentModule
from fedlightning.engine.steps import (
    DirectStep,
    Step,
    StepHooks,
    make_step,
    needs_lightning_step,
    ready_batches,
    through_transfer,
)
from fedlightning.engine.workers.apart import apart
from fedlightning.errors import ConfigError
from fedlightning.federation.client_update import LocalResult
from fedlightning.federation.jobs import Job
from fedlightning.federation.update_checks import BadUpdate, check_tensors

__all__ = [
    "LOCAL_HOOKS",
    "BatchSource",
    "ClientBatches",
    "LocalEpochs",
    "LocalTraining",
    "batch_limit",
    "time_limit",
]

LOCAL_HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
)
"""The module's own hooks that fire in a client update."""


class BatchSource(Protocol):
    """A source of training batches: a client of the data module, or the server's data."""

    def num_batches(self, client: int) -> int:
        """Return how many batches a local epoch has."""

    def batches(
        self, client: int, split: Split, *, key: Key, device: torch.device
    ) -> Iterator[Batch]:
        """Return the batches of a local epoch."""


class ClientBatches(BatchSource, Protocol):
    """The clients' data as hooks may look at it: with the places of examples, in stored order."""

    def epoch_batches(self, client: int, key: Key) -> list[Tensor]:
        """Return the examples in each batch of a local epoch, as positions in stored order."""

    def batches(
        self,
        client: int,
        split: Split,
        *,
        key: Key | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Return the batches of a local epoch; without a key, all examples in stored order."""


class Progress(Protocol):
    """Hears where local training is, for modules that ask their trainer."""

    def on_batch(self, index: int, last: bool, total: int) -> None:
        """A batch starts."""

    def done(self) -> None:
        """The local epochs are over."""


class LocalEpochs:
    """Local epochs on the resident module.

    The module's own training hooks are local events and fire here: ``on_train_start`` ...
    ``on_train_end`` once per client, ``on_train_epoch_start`` once per local epoch, and so on.

    Args:
        settings: Accumulation, limits and device.
        module: The resident module, on its device.
        data: The clients' data.
        step: How to train on one batch.
        log: Takes what the module logs.
        progress: Hears of every batch.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        module: pl.LightningModule,
        data: BatchSource,
        step: Step,
        log: LocalLog,
        progress: Progress | None = None,
    ) -> None:
        self._settings = settings
        self._module = module
        self._data = data
        self._step = step
        self._log = log
        self._progress = progress
        self._hooks = {
            name: getattr(module, name)
            for name in LOCAL_HOOKS
            if overrides(module, name, pl.LightningModule)
        }

    def run(
        self,
        client: int,
        key: Key,
        epochs: int,
        after_step: Callable[[int], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
        on_epoch_end: Callable[[int], None] | None = None,
        max_steps: int | None = None,
    ) -> LocalResult:
        """Train on a client's data; the module and its optimizers are changed.

        Args:
            client: Client id.
            key: The client's random stream: data order, dropout and augmentation follow from it.
            epochs: Passes over the data.
            after_step: Called after every batch with the number of steps so far; what it raises
                ends the training.
            on_epoch: Called at the start of every local epoch with its number.
            on_epoch_end: Called after its last batch.
            max_steps: Optimizer steps after which training ends, in the middle of an epoch if need
                be; ``None`` means after all epochs.
        """
        steps = 0
        device = self._settings.device
        available = self._batches_per_epoch(client)
        accumulate = self._settings.accumulate_grad_batches
        progress = self._progress
        log = self._log
        with apart(), forked_generators(key, device), log.capture():
            log.moment = EPOCH
            self._hook("on_train_start")
            for epoch in range(epochs):
                total = available
                if max_steps is not None:
                    total = min(available, (max_steps - steps) * accumulate)
                if on_epoch is not None:
                    on_epoch(epoch)
                self._hook("on_train_epoch_start")
                log.moment = TRAINING_BATCH
                batches = self._data.batches(
                    client, "train", key=key.at(epoch=epoch), device=device
                )
                for index, (batch, last) in enumerate(_mark_last(islice(batches, total))):
                    if progress is not None:
                        progress.on_batch(index, last, total)
                    log.on_batch(batch)
                    if self._hook("on_train_batch_start", batch, index) == -1:
                        break
                    due = last or (index + 1) % accumulate == 0
                    loss = self._step(batch, index, due)
                    steps += due
                    self._hook("on_train_batch_end", {"loss": loss}, batch, index)
                    if after_step is not None:
                        after_step(steps)
                if on_epoch_end is not None:
                    on_epoch_end(epoch)
                log.moment = EPOCH
                self._hook("on_train_epoch_end")
            self._hook("on_train_end")
            if progress is not None:
                progress.done()
            return LocalResult(steps, log.collect())

    def epochs_of(self, client: int, steps: int) -> int:
        """Return how many passes over a client's data hold so many optimizer steps."""
        return math.ceil(steps / self.steps_per_epoch(client))

    def steps_per_epoch(self, client: int) -> int:
        """Return how many optimizer steps a pass over a client's data has."""
        batches = self._batches_per_epoch(client)
        return math.ceil(batches / self._settings.accumulate_grad_batches)

    def _batches_per_epoch(self, client: int) -> int:
        return batch_limit(self._settings.limit_train_batches, self._data.num_batches(client))

    def _hook(self, name: str, *args: Any) -> Any:
        hook = self._hooks.get(name)
        return hook(*args) if hook is not None else None


class LocalTraining:
    """The local training of one client after another, in which an algorithm's hooks take part.

    Args:
        settings: Accumulation, limits and device.
        module: The resident module.
        data: The clients' data.
        resident: The module's tensors.
        algorithm: Whose hooks take part; none without one.
        trainer: The trainer, if there is one: its callbacks and plugins may want to take part in
            a step.
        log: Takes what the module logs.
        progress: Hears of every batch.
        on_local_loss: Looks at the update, the batch and the loss that is about to be
            differentiated, before every step; it must leave all of them, and the loss's graph, as
            they are. Modules that optimize by hand are not looked at.
        planned_steps: Returns how many steps a client's optimizers live for, for schedules that
            want to know it; ``None`` means those of one update.

    Raises:
        ConfigError: If a hook replaces the step, and something else does, too.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        module: pl.LightningModule,
        data: ClientBatches,
        resident: ResidentModule,
        algorithm: Algorithm | None = None,
        trainer: pl.Trainer | None = None,
        log: LocalLog | None = None,
        progress: Progress | None = None,
        on_local_loss: Callable[[ClientContext, Batch, Tensor], None] | None = None,
        planned_steps: Callable[[int], int] | None = None,
    ) -> None:
        self.log = log if log is not None else LocalLog(module)
        self._settings = settings
        self._module = module
        self._data = data
        self._resident = resident
        self._trainer = trainer
        self._progress = progress
        self._algorithm = algorithm
        self._hooks = algorithm.hooks if algorithm is not None else ()
        self._adjusting = [hook for hook in self._hooks if hook.changes_gradients]
        self._with_loss = [hook for hook in self._hooks if hook.changes_loss]
        self._look = on_local_loss if module.automatic_optimization else None
        self._context: ClientContext | None = None
        self._stateless = False  # known of a module whose attributes do not change in a step
        self._epoch = 0
        self._order: list[Tensor] | None = None  # the positions in each batch of this epoch
        self._adjust_copy: Callable[[], None] = lambda: None
        self._gradient_step: DirectStep | None = None
        step = self._own_step() or self._make_step(self._step_hooks())
        self._epochs = self._local_epochs(step)
        self._copy: LocalEpochs | None = None
        self._planned_steps = planned_steps
        schedules = [config.scheduler for config in settings.schedulers]
        self._open = [s for s in schedules if isinstance(s, NeedsTotal) and s.total_steps is None]

    @property
    def optimizer(self) -> Optimizer:
        """The module's (first) optimizer."""
        return self._settings.optimizers[0]

    @property
    def gradient_step(self) -> DirectStep | None:
        """The step that :meth:`ClientHook.local_step` is made of, where a hook overrides it."""
        return self._gradient_step

    def plan(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs this process trains next; they are trained one by one."""

    @contextmanager
    def no_logging(self) -> Iterator[None]:
        """Drop what the module logs, and what its metric objects count, inside the ``with`` block.

        Its other attributes are put back as well: they belong to the steps that the user has
        written, and not to those that an algorithm adds.
        """
        with self.log.muted():
            if self._stateless:
                yield
                return
            snapshot = ModuleSnapshot(self._module, LIGHTNING_ATTRIBUTES)
            try:
                yield
            finally:
                self._stateless = snapshot.unchanged()
                snapshot.restore()

    def run(self, context: ClientContext, epochs: int) -> LocalResult:
        """Train the context's module for some epochs."""
        if self._gradient_step is not None:
            self._refuse_accumulation()  # which a callback may have begun since the last round
        self._context, self._stateless = context, False
        self._say_total(context, epochs)
        return self._epochs.run(
            context.client,
            context.key,
            epochs,
            context.after_step,
            self._on_epoch if self._hooks else None,
            self._on_epoch_end if self._hooks else None,
            context.local_steps,
        )

    def epochs_of(self, client: int, steps: int) -> int:
        """Return how many passes over a client's data hold so many optimizer steps."""
        return self._epochs.epochs_of(client, steps)

    def optimizer_memory(self) -> State:
        """Return what the module's optimizers and schedules by step remember, as copies."""
        return self._resident.fresh.memory()

    def set_optimizer_memory(self, memory: Mapping[str, Tensor]) -> None:
        """Let the module's optimizers and schedules continue where others have ended."""
        self._resident.fresh.remember(memory)

    def positions(self, batch_idx: int) -> Tensor:
        """Return which of the client's examples a batch of the present local epoch has."""
        if self._order is None:
            key = self._now.key.at(epoch=self._epoch)
            self._order = self._data.epoch_batches(self._now.client, key)
        return self._order[batch_idx]

    def stored_batches(self, client: int, split: Split = "train") -> Iterator[Batch]:
        """Return all of a client's examples of a split in stored order, ready for the module."""
        batches = self._data.batches(client, split, device=self._settings.device)
        if self._trainer is None:
            return batches
        return ready_batches(self._trainer, self._module, batches)

    def train_copy(
        self,
        context: ClientContext,
        start: Mapping[str, Tensor],
        adjust: Callable[[], None],
        epochs: int,
    ) -> State:
        """Train another model of the client's on its data; the module is as before afterwards."""
        resident = self._resident
        if self._copy is None:
            step = self._make_step(StepHooks(adjust=lambda: self._adjust_copy()))
            self._copy = self._local_epochs(step)
        self._adjust_copy = adjust
        begun = resident.clone(context.roles.kept)
        flags = [(p, p.requires_grad) for p in self._module.parameters()]
        copy_into(context.live, start)
        key = Key(context.key.seed, "apart", context.key.round, context.client)
        self._say_total(context, epochs, alone=True)
        with self.log.muted():
            steps = context.local_steps if epochs == context.local_epochs else None
            result = self._copy.run(
                context.client, key, epochs, context.after_step, max_steps=steps
            )
        check_tensors(resident.actual_state(), resident.view(), result.steps)
        resident.rebind()
        trained = context.trained_state()
        self.log.discard()
        resident.reset_client()
        resident.load_client(begun, context.received)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        return trained

    def _say_total(self, context: ClientContext, epochs: int, alone: bool = False) -> None:
        """Tell schedules how many steps the optimizers live for: this update's, or more."""
        if not self._open:
            return
        if self._planned_steps is not None and not alone:
            total = self._planned_steps(context.client)
        else:
            total = epochs * self._epochs.steps_per_epoch(context.client)
            total = min(total, context.local_steps or total)
        for schedule in self._open:
            schedule.set_total(total)

    def _local_epochs(self, step: Step) -> LocalEpochs:
        return LocalEpochs(self._settings, self._module, self._data, step, self.log, self._progress)

    def _step_hooks(self) -> StepHooks:
        sees_loss = self._with_loss or self._look is not None
        return StepHooks(
            self._on_loss if sees_loss else None, self._adjust if self._adjusting else None
        )

    def _make_step(self, hooks: StepHooks) -> Step:
        if self._trainer is None:
            return DirectStep(self._settings, self._module, hooks)
        return make_step(self._trainer, self._module, hooks)

    def _own_step(self) -> Step | None:
        """Return the step of the hook that replaces the module's, if there is one."""
        replacing = next((hook for hook in self._hooks if hook.replaces_step), None)
        if replacing is None:
            return None
        trainer, module = self._trainer, self._module
        if trainer is not None and (reason := needs_lightning_step(trainer, module)) is not None:
            self._refuse(reason)
        self._refuse_accumulation()
        self._gradient_step = DirectStep(self._settings, module, self._step_hooks())

        def step(batch: object, batch_idx: int, due: bool) -> Tensor | None:
            assert replacing is not None
            return replacing.local_step(self._now, batch, batch_idx)

        return step if trainer is None else through_transfer(trainer, module, step)

    def _refuse_accumulation(self) -> None:
        if (batches := self._settings.accumulate_grad_batches) != 1:
            self._refuse(f"trainer.accumulate_grad_batches={batches}")

    def _refuse(self, reason: str) -> None:
        assert self._algorithm is not None
        raise ConfigError(
            f"{self._algorithm.name} says how to train on a batch, and so does {reason}; do "
            "without the latter."
        )

    @property
    def _now(self) -> ClientContext:
        assert self._context is not None
        return self._context

    def _on_epoch(self, epoch: int) -> None:
        self._epoch, self._order = epoch, None
        for hook in self._hooks:
            hook.on_epoch_start(self._now, epoch)

    def _on_epoch_end(self, epoch: int) -> None:
        for hook in self._hooks:
            hook.on_epoch_end(self._now, epoch)

    def _adjust(self) -> None:
        for hook in self._adjusting:
            hook.on_before_optimizer_step(self._now)

    def _on_loss(self, batch: Batch, loss: Tensor) -> Tensor:
        for hook in self._with_loss:
            changed = hook.on_loss(self._now, batch, loss)
            if not isinstance(changed, Tensor):
                raise ConfigError(
                    f"{type(hook).__name__}.on_loss returned {changed!r}; return the loss, a "
                    "tensor."
                )
            loss = changed
        if self._look is not None:
            self._look(self._now, batch, loss)
        return loss


def time_limit(seconds: float | None) -> Callable[[int], None] | None:
    """Return what stops a training after so many seconds from now, at the end of a local step.

    Raises:
        BadUpdate: (the returned function) if the time is over.
    """
    if seconds is None:
        return None
    start = time.monotonic()

    def check(steps: int) -> None:
        if time.monotonic() - start > seconds:
            raise BadUpdate(
                "timeout",
                f"not done after federation.client_timeout={seconds:g} s ({steps} steps)",
            )

    return check


def batch_limit(limit: int | float, available: int) -> int:
    """Return how many of a client's batches ``trainer.limit_train_batches`` leaves.

    Example:
        >>> batch_limit(0.1, available=5), batch_limit(3, available=5)
        (1, 3)
    """
    if isinstance(limit, float):
        return max(int(available * limit), 1)  # a share, but no client is left out
    return min(limit, available)


def _mark_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    iterator = iter(batches)
    try:
        previous = next(iterator)
    except StopIteration:
        return
    for batch in iterator:
        yield previous, False
        previous = batch
    yield previous, True
