"""One client's turn: its local epochs on the resident module."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from fedlightning.core.seeding import Key, forked_generators
from fedlightning.datamodules import Batch, Split
from fedlightning.engine.local_log import LocalLog
from fedlightning.engine.steps import Step, overrides
from fedlightning.federation.update_checks import BadUpdate

__all__ = ["LOCAL_HOOKS", "LocalResult", "LocalTraining", "batch_limit", "time_limit"]

LOCAL_HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
)
"""The module's own hooks that fire in a client's turn."""


@dataclass(frozen=True)
class LocalResult:
    """What a client's training did.

    Args:
        steps: Optimizer steps taken.
        metrics: Example-weighted means of what the module logged.
    """

    steps: int
    metrics: Mapping[str, float]


class BatchSource(Protocol):
    """Whose examples can be trained on: a data module's clients, or the server."""

    def num_batches(self, client: int) -> int:
        """Return how many batches a local epoch has."""

    def batches(
        self, client: int, split: Split, *, key: Key, device: torch.device
    ) -> Iterator[Batch]:
        """Return the batches of a local epoch."""


class LocalTraining:
    """Local epochs of one client after another on the resident module.

    The module's own training hooks are local events and fire here: ``on_train_start`` ...
    ``on_train_end`` once per client, ``on_train_epoch_start`` once per local epoch, and so on.

    Args:
        trainer: The trainer whose accumulation, clipping, precision and limits are honoured.
        module: The resident module, on its device.
        data: The clients' data.
        step: How to train on one batch.
        log: Takes what the module logs.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        data: BatchSource,
        step: Step,
        log: LocalLog,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._data = data
        self._step = step
        self._log = log
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
    ) -> LocalResult:
        """Train on a client's data; the module and its optimizers are changed.

        Args:
            client: Client id.
            key: The client's random stream: data order, dropout and augmentation follow from it.
            epochs: Passes over the data.
            after_step: Called after every batch with the number of steps so far; what it raises
                ends the training.
            on_epoch: Called at the start of every local epoch with its number.
        """
        steps = 0
        device = self._trainer.strategy.root_device
        limit = batch_limit(self._trainer.limit_train_batches, self._data.num_batches(client))
        accumulate = self._trainer.accumulate_grad_batches
        with forked_generators(key, device), self._log.capture():
            self._hook("on_train_start")
            for epoch in range(epochs):
                if on_epoch is not None:
                    on_epoch(epoch)
                self._hook("on_train_epoch_start")
                batches = self._data.batches(
                    client, "train", key=key.at(epoch=epoch), device=device
                )
                for index, (batch, last) in enumerate(_mark_last(islice(batches, limit))):
                    if self._hook("on_train_batch_start", batch, index) == -1:
                        break
                    due = last or (index + 1) % accumulate == 0
                    self._log.on_batch(batch)
                    loss = self._step(batch, index, due)
                    steps += due
                    self._hook("on_train_batch_end", {"loss": loss}, batch, index)
                    if after_step is not None:
                        after_step(steps)
                self._hook("on_train_epoch_end")
            self._hook("on_train_end")
            return LocalResult(steps, self._log.collect())

    def _hook(self, name: str, *args: Any) -> Any:
        hook = self._hooks.get(name)
        return hook(*args) if hook is not None else None


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
