"""How to train on one batch: the short way, and when it must be Lightning's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer

from fedlightning.core.batches import Batch
from fedlightning.core.overrides import overrides
from fedlightning.engine._lightning.stock_step import (
    LightningStep,
    transfer_batch,
    warn_of_no_loss,
)
from fedlightning.engine.local_settings import TrainerSettings, TrainingSettings
from fedlightning.errors import ConfigError

__all__ = [
    "STEP_HOOKS",
    "DirectStep",
    "Step",
    "StepHooks",
    "loss_of",
    "make_step",
    "needs_lightning_step",
    "ready_batches",
    "through_transfer",
    "transfers_batches",
    "with_index",
]

STEP_HOOKS = (
    "on_before_backward",
    "on_after_backward",
    "on_before_zero_grad",
    "on_before_optimizer_step",
)
_MODULE_STEP_HOOKS = (
    *STEP_HOOKS,
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)
_TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class Step(Protocol):
    """Trains on one batch; the optimizer moves if ``due``. Returns the loss, if there is one."""

    def __call__(self, batch: Batch, batch_idx: int, due: bool) -> Tensor | None:
        """Train on one batch."""


@dataclass(frozen=True)
class StepHooks:
    """What an algorithm wants to change in every step.

    Args:
        on_loss: Returns the loss to differentiate, given the batch and the module's loss.
        adjust: Changes the gradients before they are clipped and the optimizer steps.
    """

    on_loss: Callable[[Batch, Tensor], Tensor] | None = None
    adjust: Callable[[], None] | None = None


class DirectStep:
    """A training step with nothing between the module and the optimizer.

    Valid where no hook, callback or precision plugin wants to stand in between; gives the same bits
    as Lightning's own optimization loop, at a tenth of its overhead. It needs no Trainer.

    Args:
        settings: Optimizers, precision, clipping and accumulation.
        module: The resident module.
        hooks: What the algorithm changes.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        module: pl.LightningModule,
        hooks: StepHooks | None = None,
    ) -> None:
        hooks = hooks or StepHooks()
        self._module = module
        self._on_loss, self._adjust = hooks.on_loss, hooks.adjust
        self._training_step = with_index(module.training_step)
        self._settings = settings  # a callback may change its accumulation from round to round
        self._clip_val = settings.gradient_clip_val
        self._clip_algorithm = settings.gradient_clip_algorithm or GradClipAlgorithmType.NORM
        self._optimizer = settings.optimizers[0]
        self._schedulers = list(settings.schedulers)
        self._precision = settings.precision
        self._context: Callable[[], AbstractContextManager[Any]] = (
            nullcontext
            if type(self._precision) is Precision
            else self._precision.train_step_context
        )

    def __call__(self, batch: Batch, batch_idx: int, due: bool) -> Tensor | None:
        """Train on one batch."""
        loss = self.gradient(batch, batch_idx)
        if loss is None:
            return None
        if due:
            self.update(batch_idx)
        return loss.detach()

    def loss(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss, through which gradients flow."""
        with self._context():
            loss = loss_of(self._training_step(batch, batch_idx), self._module)
            if loss is not None and self._on_loss is not None:
                loss = self._on_loss(batch, loss)
        return loss

    def gradient(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Add the gradient of the loss to what is there; return the loss."""
        loss = self.loss(batch, batch_idx)
        if loss is None:
            return None
        accumulate = self._settings.accumulate_grad_batches
        (loss / accumulate if accumulate > 1 else loss).backward()  # type: ignore[no-untyped-call]
        return loss

    def update(self, batch_idx: int) -> None:
        """Take the optimizer's step, and forget the gradients."""
        if self._adjust is not None:
            self._adjust()
        self.clip(self._optimizer)
        self._optimizer.step()
        self._optimizer.zero_grad()
        for config in self._schedulers:
            if (batch_idx + 1) % config.frequency == 0:
                self._module.lr_scheduler_step(config.scheduler, None)

    def clip(self, optimizer: Optimizer) -> None:
        """Clip the gradients of an optimizer's parameters, if the settings say so."""
        if self._clip_val:
            self._precision.clip_gradients(
                optimizer,
                clip_val=self._clip_val,
                gradient_clip_algorithm=GradClipAlgorithmType(self._clip_algorithm),
            )


def loss_of(output: Any, module: pl.LightningModule) -> Tensor | None:
    """Return the loss in what a training step has returned; ``None`` if the batch is skipped.

    Raises:
        ConfigError: There is no loss in it, or one that nothing can be learned from.
    """
    loss = output.get("loss", output) if isinstance(output, Mapping) else output
    if loss is None:
        warn_of_no_loss()
        return None
    if isinstance(loss, Tensor):
        return loss
    if isinstance(loss, Mapping):
        got = f"a dict without 'loss' ({', '.join(map(repr, loss))})"
    else:
        got = f"{loss!r} of {type(loss).__name__}"
    raise ConfigError(
        f"{type(module).__name__}.training_step returned {got[:200]}; return the loss, a tensor, "
        "or a dict that has it as 'loss'."
    )


def make_step(
    trainer: pl.Trainer, module: pl.LightningModule, hooks: StepHooks | None = None
) -> Step:
    """Return the shortest training step that honours everything that wants to take part.

    Args:
        trainer: The trainer.
        module: The resident module.
        hooks: What the algorithm changes.

    Raises:
        ConfigError: If the algorithm changes the loss of a module that optimizes by hand.
    """
    step: Step
    if needs_lightning_step(trainer, module) is None:
        step = DirectStep(TrainerSettings(trainer), module, hooks)
    elif not module.automatic_optimization and hooks is not None and hooks.on_loss is not None:
        raise ConfigError(
            f"the algorithm changes the loss, which {type(module).__name__} differentiates itself "
            "(automatic_optimization=False); use automatic optimization."
        )
    else:
        on_loss, adjust = (hooks.on_loss, hooks.adjust) if hooks is not None else (None, None)
        step = LightningStep(trainer, adjust, on_loss)
    return through_transfer(trainer, module, step)


def needs_lightning_step(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Return the reason for which local steps must take Lightning's own path, or ``None``."""
    if not module.automatic_optimization:
        return "manual optimization"
    for hook in _MODULE_STEP_HOOKS:
        if overrides(module, hook, pl.LightningModule):
            return f"{type(module).__name__}.{hook}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for hook in STEP_HOOKS:
            if overrides(callback, hook, pl.Callback):
                return f"{type(callback).__name__}.{hook}"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "gradient scaling (trainer.precision=16-mixed; bf16-mixed has none)"
    if not isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
        return "a profiler"
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        return "an optimizer that evaluates the loss itself"
    if len(trainer.optimizers) != 1:
        return "several optimizers"
    return None


def transfers_batches(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether the user's hooks or the precision plugin want to see batches before the step does."""
    owners: list[tuple[object, type]] = [(module, pl.LightningModule)]
    if (datamodule := getattr(trainer, "datamodule", None)) is not None:
        owners.append((datamodule, pl.LightningDataModule))
    return overrides(trainer.precision_plugin, "convert_input", Precision) or any(
        overrides(owner, hook, base) for owner, base in owners for hook in _TRANSFER_HOOKS
    )


def ready_batches(
    trainer: pl.Trainer, module: pl.LightningModule, batches: Iterator[Batch]
) -> Iterator[Batch]:
    """Return batches that have been through hooks and plugins, where any wants them."""
    if not transfers_batches(trainer, module):
        return batches
    return (transfer_batch(trainer, batch) for batch in batches)


def through_transfer(trainer: pl.Trainer, module: pl.LightningModule, step: Step) -> Step:
    """Return a step that sends batches through hooks and plugins first, where any wants them."""
    if not transfers_batches(trainer, module):
        return step
    return lambda batch, index, due: step(transfer_batch(trainer, batch), index, due)


def with_index(step: Callable[..., Any]) -> Callable[[Batch, int], Any]:
    """Return a step as a function of batch and index, whether it wants an index or not."""
    positional = [
        parameter
        for parameter in inspect.signature(step).parameters.values()
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in positional):
        return step
    return lambda batch, batch_idx: step(batch)
