"""One client's turn: local training and evaluation of the resident module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor
from torch.nn import functional as F

from fedlightning.datamodules import FederatedDataModule, Split
from fedlightning.local_log import LocalLog, batch_length
from fedlightning.seeding import Key, forked_generators

__all__ = [
    "LocalFit",
    "LocalResult",
    "ShortStep",
    "Step",
    "evaluate",
    "evaluation_steps",
    "no_step",
    "overrides",
]

Batch = Any


class Step(Protocol):
    """Trains on one batch; the optimizer moves if ``due``. Returns the loss, if there is one."""

    def __call__(self, batch: Batch, batch_idx: int, due: bool) -> Tensor | None:
        """Train on one batch."""


@dataclass(frozen=True)
class LocalResult:
    """What a client's training did.

    Args:
        steps: Optimizer steps taken.
        loss: The last batch's loss, shape ().
        metrics: Example-weighted means of what the module logged.
    """

    steps: int
    loss: Tensor | None
    metrics: Mapping[str, float]


class LocalFit:
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
        data: FederatedDataModule,
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
            for name in (
                "on_train_start",
                "on_train_epoch_start",
                "on_train_batch_start",
                "on_train_batch_end",
                "on_train_epoch_end",
                "on_train_end",
            )
            if overrides(module, name, pl.LightningModule)
        }

    def run(self, client: int, key: Key, epochs: int) -> LocalResult:
        """Train on a client's data; the module and its optimizers are changed.

        Args:
            client: Client id.
            key: The client's random stream: data order, dropout and augmentation follow from it.
            epochs: Passes over the data.
        """
        steps, loss = 0, None
        device = self._trainer.strategy.root_device
        limit = _limit(self._trainer.limit_train_batches, self._data.num_batches(client))
        accumulate = self._trainer.accumulate_grad_batches
        with forked_generators(key, device), self._log.capture():
            self._hook("on_train_start")
            for epoch in range(epochs):
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
                self._hook("on_train_epoch_end")
            self._hook("on_train_end")
            return LocalResult(steps, loss, self._log.collect())

    def _hook(self, name: str, *args: Any) -> Any:
        hook = self._hooks.get(name)
        return hook(*args) if hook is not None else None


class ShortStep:
    """A training step with nothing between the module and the optimizer.

    Valid where no hook, callback or precision plugin wants to stand in between; gives the same bits
    as Lightning's own optimization loop, at a tenth of its overhead.

    Args:
        trainer: For precision, clipping and accumulation.
        module: The resident module.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._module = module
        self._training_step = training_step_of(module)
        self._trainer = trainer  # a callback may change its accumulation from round to round
        self._clip_val = trainer.gradient_clip_val
        self._clip_algorithm = trainer.gradient_clip_algorithm
        self._optimizer = trainer.optimizers[0]
        self._schedulers = [
            config for config in trainer.lr_scheduler_configs if config.interval == "step"
        ]
        precision = trainer.precision_plugin
        self._context: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if type(precision) is Precision else precision.train_step_context
        )

    def __call__(self, batch: Batch, batch_idx: int, due: bool) -> Tensor | None:
        """Train on one batch."""
        with self._context():
            output = self._training_step(batch, batch_idx)
        loss: Tensor | None = output["loss"] if isinstance(output, Mapping) else output
        if loss is None:
            return None
        accumulate = self._trainer.accumulate_grad_batches
        (loss / accumulate if accumulate > 1 else loss).backward()  # type: ignore[no-untyped-call]
        if due:
            if self._clip_val:
                self._module.clip_gradients(
                    self._optimizer,
                    gradient_clip_val=self._clip_val,
                    gradient_clip_algorithm=self._clip_algorithm,
                )
            self._optimizer.step()
            self._optimizer.zero_grad()
            for config in self._schedulers:
                if (batch_idx + 1) % config.frequency == 0:
                    self._module.lr_scheduler_step(config.scheduler, None)
        return loss.detach()


@torch.no_grad()
def evaluate(
    module: pl.LightningModule,
    batches: Iterable[Batch],
    split: Split,
    log: LocalLog,
    precision: Precision,
) -> dict[str, float]:
    """Return what the module logs about one client's data, averaged over its examples.

    Args:
        module: The model to evaluate, in the mode (``eval()``) that it shall have.
        batches: The client's batches.
        split: ``"val"`` runs ``validation_step``, if there is one; ``"test"`` runs ``test_step``,
            and without one a module that gives logits for ``(x, y)`` is evaluated as a classifier.
        log: Takes what the module logs.
        precision: The trainer's precision plugin.
    """
    own = getattr(module, "validation_step" if split == "val" else "test_step")
    if own is no_step or not overrides(module, own.__name__, pl.LightningModule):
        if split == "val":
            return {}
        own = _classifier_step(module, log)
    step = _with_optional_index(own)
    with log.capture():
        for index, batch in enumerate(batches):
            log.on_batch(batch)
            with precision.test_step_context():
                step(batch, index)
        return log.collect()


def no_step(batch: Batch, batch_idx: int) -> None:
    """Evaluate nothing: a stand-in for the steps that a module does not have."""


@contextmanager
def evaluation_steps(module: pl.LightningModule | None) -> Iterator[None]:
    """Give a module the evaluation steps that it lacks, inside the ``with`` block.

    Lightning skips evaluation, or refuses it, for a module without the step; but whoever predicts
    classes can be evaluated on the clients' test data without one.
    """
    missing = [
        name
        for name in ("validation_step", "test_step")
        if module is not None and not overrides(module, name, pl.LightningModule)
    ]
    for name in missing:
        vars(module)[name] = no_step
    try:
        yield
    finally:
        for name in missing:
            del vars(module)[name]


def overrides(instance: object, name: str, base: type) -> bool:
    """Whether an object has its own method of this name, rather than the base class's."""
    own = vars(instance).get(name) or getattr(type(instance), name, None)
    return own is not None and own is not getattr(base, name, None)


def training_step_of(module: pl.LightningModule) -> Callable[[Batch, int], Any]:
    """Return ``training_step`` as a function of batch and index, whether it wants one or not."""
    return _with_optional_index(module.training_step)


def _with_optional_index(step: Callable[..., Any]) -> Callable[[Batch, int], Any]:
    positional = [
        parameter
        for parameter in inspect.signature(step).parameters.values()
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in positional):
        return step
    return lambda batch, batch_idx: step(batch)


def _classifier_step(module: pl.LightningModule, log: LocalLog) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            return
        x, y = batch
        logits = module(x)
        if y.is_floating_point() or logits.ndim != 2:
            return
        size = batch_length(batch)
        log.record("global/loss", F.cross_entropy(logits, y), batch_size=size)
        log.record("global/acc", (logits.argmax(dim=-1) == y).double().mean(), batch_size=size)

    return step


def _limit(limit: int | float, available: int) -> int:
    return int(available * limit) if isinstance(limit, float) else min(limit, available)


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
