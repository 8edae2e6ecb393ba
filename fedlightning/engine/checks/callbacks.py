"""Stock callbacks that cannot take part in a federated run are refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    LearningRateFinder,
    ModelPruning,
)

from fedlightning.core.validation import check_instance
from fedlightning.errors import ConfigError
from fedlightning.storage.checkpoint_io import AtomicCheckpointIO

__all__ = ["check_callbacks"]

_TRAINS = "it trains outside of rounds"
_REFUSED: Mapping[type[Callback], str] = {
    LearningRateFinder: f"{_TRAINS}; compare runs with different rates of the optimizer",
    BatchSizeFinder: f"{_TRAINS}; compare runs with different batch sizes of the data",
    ModelPruning: "it renames the keys of the state, which clients and server have in common; "
    "prune the model after the run",
}
_OF_THE_TUNER: Mapping[type[Callback], str] = {
    LearningRateFinder: "Tuner.lr_find",
    BatchSizeFinder: "Tuner.scale_batch_size",
}


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuse callbacks without federated meaning, and the Tuner, which works by means of them.

    Args:
        trainer: The trainer with its callbacks, those that a module has brought included.

    Raises:
        ConfigError: There is one; the message says why.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    ours = isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    for callback in callbacks:
        check_instance("trainer.callbacks", callback, Callback)
        folder = getattr(callback, "dirpath", None)
        if ours and isinstance(callback, Checkpoint) and "://" in str(folder):
            raise ConfigError(
                f"{type(callback).__name__}(dirpath={str(folder)!r}): checkpoints are written to "
                "local folders only; mount it, or pass plugins=[TorchCheckpointIO()]."
            )
        kind = next((kind for kind in _REFUSED if isinstance(callback, kind)), None)
        if kind is None:
            continue
        name = type(callback).__name__
        if getattr(callback, "_early_exit", False) and kind in _OF_THE_TUNER:
            callbacks.remove(callback)  # by the Tuner's own hand, if the Tuner could go on
            name = f"{_OF_THE_TUNER[kind]} ({name})"
        raise ConfigError(f"{name} has no federated meaning: {_REFUSED[kind]}.")
