"""A training step through Lightning's own optimization loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loops.optimization.automatic import Closure
from pytorch_lightning.trainer import call
from torch import Tensor

from fedlightning.engine._lightning.round_loop import RoundLoop

__all__ = ["LightningStep", "forget_failed_step", "transfer_batch", "warn_of_no_loss"]


class _Adjuster(pl.Callback):
    """Stands among the callbacks while an algorithm's step is taken."""

    def __init__(self, adjust: Callable[[], None]) -> None:
        self._adjust = adjust

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._adjust()


class LightningStep:
    """A training step through Lightning's own optimization loops: every hook and plugin takes part.

    Args:
        trainer: A trainer whose fit loop is a :class:`RoundLoop`.
        adjust: Changes the gradients before they are clipped and the optimizer steps.
        on_loss: Returns the loss to differentiate, given the batch and the module's loss.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        adjust: Callable[[], None] | None = None,
        on_loss: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self._trainer = trainer
        assert isinstance(trainer.fit_loop, RoundLoop)
        self._loop = trainer.fit_loop
        self._adjuster = [_Adjuster(adjust)] if adjust is not None else []
        self._on_loss = on_loss

    def __call__(self, batch: Any, batch_idx: int, due: bool) -> Tensor | None:
        """Train on one batch."""
        trainer, epoch_loop = self._trainer, self._loop.epoch_loop
        updates, self._loop.accumulating = self._loop.updates, not due
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:0] = self._adjuster  # before anyone else's hooks
        try:
            kwargs = epoch_loop._build_kwargs({}, batch, batch_idx)  # type: ignore[arg-type]
            if trainer.lightning_module.automatic_optimization:
                with self._changed_loss():
                    output = epoch_loop.automatic_optimization.run(
                        trainer.optimizers[0],
                        batch_idx,
                        kwargs,
                    )
                if due:
                    self._step_schedulers(batch_idx)
            else:
                output = epoch_loop.manual_optimization.run(kwargs)
        finally:
            del callbacks[: len(self._adjuster)]
            self._loop.accumulating = False
            self._loop._count_updates(updates)
        loss = output.get("loss")
        return loss.detach() if isinstance(loss, Tensor) else None

    @contextmanager
    def _changed_loss(self) -> Iterator[None]:
        """Have the module's training step return the changed loss inside the ``with`` block."""
        if self._on_loss is None:
            yield
            return
        module, own = self._trainer.lightning_module, vars(self._trainer.lightning_module)
        before, training_step = own.get("training_step"), module.training_step
        on_loss = self._on_loss

        @wraps(training_step)
        def changed(batch: Any, *args: Any, **kwargs: Any) -> Any:
            output = training_step(batch, *args, **kwargs)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if loss is None:
                return output
            loss = on_loss(batch, loss)
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        own["training_step"] = changed
        try:
            yield
        finally:
            if before is None:
                del own["training_step"]
            else:
                own["training_step"] = before

    def _step_schedulers(self, batch_idx: int) -> None:
        trainer = self._trainer
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step" and (batch_idx + 1) % config.frequency == 0:
                call._call_lightning_module_hook(
                    trainer, "lr_scheduler_step", config.scheduler, None
                )


def transfer_batch(trainer: pl.Trainer, batch: Any) -> Any:
    """Send a batch through precision plugin and transfer hooks, as Lightning does."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)


def warn_of_no_loss() -> None:
    """Warn of a training step without a loss, as Lightning does: once in a process."""
    Closure.warning_cache.warn(
        "`training_step` returned `None`, so nothing was learned from that batch. If this was on "
        "purpose, ignore this warning; else return the loss."
    )


def forget_failed_step(trainer: pl.Trainer) -> None:
    """Undo what a training step that raised has left open in Lightning: hook name, gradients."""
    trainer.lightning_module._current_fx_name = None
    trainer.lightning_module.zero_grad()
