"""What a trainer says that it is doing while a module lives through an epoch within another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import RunningStage, TrainerFn

from fedlightning.datamodules import Split

__all__ = ["at_stage", "show_callback_metrics"]


@contextmanager
def at_stage(trainer: pl.Trainer, split: Split) -> Iterator[None]:
    """Have a trainer say, inside the ``with`` block, that it trains, validates or tests.

    Args:
        trainer: The trainer.
        split: ``"train"``, ``"val"``, or any other split, which means testing. Validation within
            ``fit`` stays that, and so does a sanity check.
    """
    state = trainer.state
    before = state.fn, state.stage
    if split == "train":
        state.fn, state.stage = TrainerFn.FITTING, RunningStage.TRAINING
    elif split != "val":
        state.fn, state.stage = TrainerFn.TESTING, RunningStage.TESTING
    elif not (trainer.validating or trainer.sanity_checking):
        fits = state.fn is TrainerFn.FITTING
        state.fn = TrainerFn.FITTING if fits else TrainerFn.VALIDATING
        state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        state.fn, state.stage = before


def show_callback_metrics(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Show numbers in ``trainer.callback_metrics``, until others of the same names are logged."""
    shown = {name: torch.tensor(value) for name, value in values.items()}
    trainer._logger_connector._callback_metrics.update(shown)
