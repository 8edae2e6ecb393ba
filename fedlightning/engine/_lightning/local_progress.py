"""What a trainer says of its progress while a client trains: that of the local epoch."""

from __future__ import annotations

import pytorch_lightning as pl

from fedlightning.engine._lightning.round_loop import RoundLoop

__all__ = ["LocalProgress"]


class LocalProgress:
    """Makes ``trainer.is_last_batch`` and ``trainer.num_training_batches`` those of a local epoch.

    To callbacks the same attributes count clients; they are put back after a client's update.

    Args:
        trainer: A trainer whose fit loop is a :class:`RoundLoop`.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        assert isinstance(trainer.fit_loop, RoundLoop)
        self._loop = trainer.fit_loop
        self._before: tuple[bool, int | float] | None = None

    def on_batch(self, index: int, last: bool, total: int) -> None:
        """Say where the local epoch is."""
        progress = self._loop.epoch_loop.batch_progress
        if self._before is None:
            self._before = progress.is_last_batch, self._loop.max_batches
            self._loop.max_batches = total
        progress.is_last_batch = last

    def done(self) -> None:
        """Say again where the round is."""
        if self._before is not None:
            last, self._loop.max_batches = self._before
            self._loop.epoch_loop.batch_progress.is_last_batch = last
            self._before = None
