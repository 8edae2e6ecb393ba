"""Where a trainer's loops, loggers and strategy are hooked into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.data import AttributeDict
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.compile import from_compiled

from fedlightning.engine._lightning.evaluation_loop import ClientEvaluationLoop
from fedlightning.engine._lightning.round_loop import RoundLoop

__all__ = [
    "after_environment",
    "agreeing_on_checkpoint",
    "around_optimizers",
    "continue_logger",
    "in_every_checkpoint",
    "install_loops",
    "loading_weights",
    "logging_facts",
    "needs_no_step",
    "personalization_loop",
    "requeued_checkpoint",
    "rounds_between_looks",
    "uncompiled",
    "wandb_settings",
]


def install_loops(
    trainer: pl.Trainer,
    fit_loop: RoundLoop,
    evaluation: Callable[..., ClientEvaluationLoop],
    inference_mode: bool,
) -> None:
    """Put federated loops in the place of a trainer's own."""
    stock: _TrainingEpochLoop = trainer.fit_loop.epoch_loop
    fit_loop.epoch_loop = _TrainingEpochLoop(trainer, stock.min_steps, stock.max_steps)
    fit_loop.epoch_loop.val_loop = evaluation(
        trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
    )
    trainer.fit_loop = fit_loop
    trainer.validate_loop = evaluation(
        trainer, TrainerFn.VALIDATING, RunningStage.VALIDATING, inference_mode=inference_mode
    )
    trainer.test_loop = evaluation(
        trainer, TrainerFn.TESTING, RunningStage.TESTING, inference_mode=inference_mode
    )


def needs_no_step(callback: ModelCheckpoint) -> None:
    """Have a callback save at its next event, although no step was made since its last one."""
    callback._last_global_step_saved = -1


@contextmanager
def personalization_loop(
    trainer: pl.Trainer, evaluation: Callable[..., ClientEvaluationLoop]
) -> Iterator[None]:
    """Have ``trainer.test`` personalise and evaluate nothing, inside the ``with`` block.

    Args:
        trainer: The trainer.
        evaluation: Makes a :class:`PersonalizationLoop`.
    """
    before = trainer.test_loop
    trainer.test_loop = evaluation(
        TrainerFn.TESTING, RunningStage.TESTING, inference_mode=before.inference_mode
    )
    try:
        yield
    finally:
        trainer.test_loop = before


def around_optimizers(
    trainer: pl.Trainer, prepare: Callable[[], None], built: Callable[[], None]
) -> None:
    """Have ``prepare`` called when the module is complete, ``built`` once its optimizers are."""
    stock = trainer.strategy.setup_optimizers

    def setup_optimizers(trainer: pl.Trainer) -> None:
        prepare()
        stock(trainer)
        built()

    trainer.strategy.setup_optimizers = setup_optimizers  # type: ignore[method-assign]


def uncompiled(model: Any) -> Any:
    """Return the module that ``torch.compile`` has wrapped, its steps compiled, or what is given.

    Lightning does the same a little later. A step that the module lacks stays missing.
    """
    inner = getattr(model, "_orig_mod", None)
    if not isinstance(inner, pl.LightningModule):
        return model
    module = from_compiled(model)
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        if getattr(type(inner), name) is getattr(pl.LightningModule, name):
            vars(module).pop(name, None)
    return module


def rounds_between_looks(callback: pl.Callback) -> int:
    """Return how many rounds a monitoring callback lets pass between two looks at its metric."""
    return max(int(getattr(callback, "_every_n_epochs", 1)), 1)


def after_environment(trainer: pl.Trainer, opened: Callable[[], None]) -> None:
    """Have ``opened`` called when the ranks know each other, before anything is written."""
    strategy = trainer.strategy
    strategy.setup_environment = partial(  # type: ignore[method-assign]
        _one_then_other, strategy.setup_environment, opened
    )


def agreeing_on_checkpoint(trainer: pl.Trainer, agreed: Callable[[Any], Any]) -> None:
    """Have every rank load the checkpoint that ``agreed`` returns for its own."""
    connector = trainer._checkpoint_connector
    stock = connector.resume_start

    def resume_start(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> None:
        stock(agreed(checkpoint_path), *args, **kwargs)

    connector.resume_start = resume_start  # type: ignore[method-assign]


def in_every_checkpoint(trainer: pl.Trainer, note: Callable[[dict[str, Any]], None]) -> None:
    """Have ``note`` called with every checkpoint that the trainer makes, before it is written."""
    connector = trainer._checkpoint_connector
    connector.dump_checkpoint = partial(_noted, note, connector.dump_checkpoint)  # type: ignore[method-assign]


def loading_weights(
    trainer: pl.Trainer, load: Callable[[Callable[[], None], Mapping[str, Any]], None]
) -> None:
    """Have ``load`` load a checkpoint's weights: called with how to do so, and the checkpoint.

    The module is complete by then, whatever makes its layers.
    """
    strategy, stock = trainer.strategy, trainer.strategy.load_model_state_dict

    def load_model_state_dict(checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load(partial(stock, checkpoint, strict=strict), checkpoint)

    strategy.load_model_state_dict = load_model_state_dict  # type: ignore[method-assign]


def logging_facts(trainer: pl.Trainer, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Have every logger get facts together with the hyperparameters, in Lightning's one call.

    A second call would not do: TensorBoard shows what the first one says. The facts stand beside
    the data module's hyperparameters while Lightning logs, and are gone when it has.

    Args:
        trainer: The trainer.
        facts: Returns them by name; called once the data is set up.
    """
    strategy, connector = trainer.strategy, trainer._checkpoint_connector
    setup, restore = strategy.setup, connector.restore_training_state
    before: list[tuple[Any, bool, Any]] = []

    def put_back() -> None:
        for data, logs, hyperparameters in before:
            data._log_hyperparams, data._hparams_initial = logs, hyperparameters
        before.clear()

    def set_up(*args: Any, **kwargs: Any) -> None:
        setup(*args, **kwargs)
        put_back()
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.loggers and data is not None and (named := facts()):
            own = data.hparams_initial
            before.append((data, data._log_hyperparams, own))
            shown = dict(own) if data._log_hyperparams else {}
            data._log_hyperparams, data._hparams_initial = True, AttributeDict({**shown, **named})

    def restore_state() -> None:
        put_back()
        restore()

    strategy.setup = set_up  # type: ignore[method-assign]
    connector.restore_training_state = restore_state  # type: ignore[method-assign]


def _noted(
    note: Callable[[dict[str, Any]], None],
    dump: Callable[..., dict[str, Any]],
    *args: Any,
    **kw: Any,
) -> dict[str, Any]:
    checkpoint = dump(*args, **kw)
    note(checkpoint)
    return checkpoint


def _one_then_other(one: Callable[[], None], other: Callable[[], None]) -> None:
    one()
    other()


def continue_logger(logger: Logger, version: int | str | None, step: int) -> None:
    """Have a logger that has not started yet continue an earlier run.

    Args:
        logger: A TensorBoard or W&B logger; others are left alone.
        version: The earlier run's version, or id.
        step: What that run logged at this step and later does not count.
    """
    if isinstance(logger, TensorBoardLogger):
        logger._kwargs.setdefault("purge_step", step)
        if logger._version is None:
            logger._version = version
    elif isinstance(logger, WandbLogger) and logger._id is None and version is not None:
        logger._id = logger._wandb_init["id"] = str(version)


def requeued_checkpoint(trainer: pl.Trainer) -> str | None:
    """Return the newest checkpoint that a preempted job has left in the run's root, if any."""
    return trainer._checkpoint_connector._hpc_resume_path


def wandb_settings(logger: Logger) -> dict[str, Any] | None:
    """Return what an online W&B logger will start its run with; ``None`` for any other logger."""
    if not isinstance(logger, WandbLogger) or logger._offline or logger._experiment is not None:
        return None
    return dict(logger._wandb_init)
