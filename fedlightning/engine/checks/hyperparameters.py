"""What is said of hyperparameters that a checkpoint does not hold as they are."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.storage.checkpoint_io import AtomicCheckpointIO
from fedlightning.storage.plain_values import changed_kinds

__all__ = ["warn_of_hyperparameters"]


def warn_of_hyperparameters(trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> None:
    """Say in a line which hyperparameters ``load_from_checkpoint`` must be given again.

    Checkpoints hold plain values only. A run that is resumed, tested, personalized or exported has
    a module, with hyperparameters of its own; one that is built from the checkpoint alone has not.

    Args:
        trainer: The trainer; nothing is said where it does not write checkpoints by itself.
        module: The clients' module.
        data: The clients' data module, if known.
    """
    writer = trainer.strategy.checkpoint_io
    if not trainer.checkpoint_callbacks or not isinstance(writer, AtomicCheckpointIO):
        return
    for owner in (module, data):
        changed = changed_kinds(getattr(owner, "hparams", None) or {})
        if not changed:
            continue
        name = type(owner).__name__
        listed = ", ".join(f"{key!r} ({change})" for key, change in changed.items())
        again = ", ".join(f"{key}=..." for key in changed)
        rank_zero_warn(
            f"checkpoints hold plain values, so of {name} they hold the hyperparameters {listed}: "
            "a run that is resumed, tested, personalized or exported uses those of the object that "
            f"you pass; {name}.load_from_checkpoint(path, {again}) must be given them."
        )
