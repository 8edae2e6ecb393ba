"""What a run shows, whichever trainer made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

State = dict[str, Tensor]
Numbers = Mapping[str, float]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Shown:
    """What a trainer shows after an epoch, or a round.

    Args:
        metrics: ``trainer.callback_metrics``.
        logged: Names in ``trainer.logged_metrics``.
        bar: Names in ``trainer.progress_bar_metrics``.
        state: The module's state.
    """

    metrics: Numbers
    logged: frozenset[str]
    bar: frozenset[str]
    state: State


@dataclass
class Run:
    """A run that is over.

    Args:
        module: The module, as the trainer left it.
        epochs: What was shown after each epoch, or round.
        notes: What the module noted.
        trainer: The trainer.
        start: The state with which it began.
    """

    module: pl.LightningModule
    trainer: pl.Trainer
    epochs: list[Shown] = field(default_factory=list)
    notes: Mapping[str, list[Any]] = field(default_factory=dict)
    start: State = field(default_factory=dict)


class Recorder(pl.Callback):
    """Keeps what a trainer shows once an epoch is over for everybody.

    Args:
        file: Where to write that at the end of training.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.start: State = {}
        self.epochs: list[Shown] = []
        self.clients_started = 0
        self._file = file
        self._under_way = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = state_of(pl_module)

    def on_train_batch_start(self, *_: Any) -> None:
        self.clients_started += 1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._under_way:
            self._look(trainer, pl_module)
        self._under_way = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer, pl_module)
        if self._file is not None and trainer.is_global_zero:
            torch.save([astuple(shown) for shown in self.epochs], self._file)

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epochs.append(
            Shown(
                numbers(trainer.callback_metrics),
                frozenset(trainer.logged_metrics),
                frozenset(trainer.progress_bar_metrics),
                state_of(module),
            )
        )


def numbers(metrics: Mapping[str, Any]) -> Numbers:
    """Return metrics as Python floats."""
    return {name: float(value) for name, value in metrics.items()}


def state_of(module: nn.Module) -> State:
    """Return a copy of a module's state."""
    state = module.state_dict()
    return {key: value.detach().clone() for key, value in state.items() if not is_lazy(value)}


def seeded(make: Any) -> Any:
    """Return what ``make`` makes, drawn from the same random stream each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make()
