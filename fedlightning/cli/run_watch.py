"""What a run was doing when it ended, what it has saved, and which folder it leaves behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.datamodules import ClientTask
from fedlightning.engine.resume.resumption import Resumption
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import FedLightningError, did_you_mean
from fedlightning.storage.run_layout import CHECKPOINTS, LAST_CHECKPOINT

__all__ = ["RunMonitor", "SaveRunConfig"]


class RunMonitor(pl.Callback):
    """Follows a run for the sake of what is said at its end, should it not end well.

    Attributes:
        trainer: The trainer, once there is one that runs.
        client: The client at work, ``None`` between clients.
        checkpoint: The checkpoint that the run is to start from.
        report: Says how the command ended, and returns its exit code.
        environment: The process's environment before the run.
    """

    def __init__(self) -> None:
        self.trainer: pl.Trainer | None = None
        self.client: int | None = None
        self.checkpoint: str | None = None
        self.environment = dict(os.environ)
        self.report: Callable[[BaseException], int] | None = None
        self._first_round: int | None = None
        self._root: Path | None = None
        self._before: set[str] = set()
        self._missing: list[Path] = []

    # -- the client at work --------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first round comes next, or the one that a checkpoint left off at."""
        self._first_round = trainer.current_epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """A client starts to train."""
        self._client_starts(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        """A client is done."""
        self.client = None

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """The model is evaluated on a client's data."""
        self._client_starts(batch)

    def on_validation_batch_end(self, *_: Any) -> None:
        """A client is done."""
        self.client = None

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """The model is evaluated on a client's data."""
        self._client_starts(batch)

    def on_test_batch_end(self, *_: Any) -> None:
        """A client is done."""
        self.client = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of what was to be monitored and never came."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            metric = getattr(callback, "monitor", None)
            if isinstance(metric, str) and metric not in trainer.callback_metrics:
                hint = did_you_mean(metric, trainer.callback_metrics)
                name = type(callback).__name__
                rank_zero_warn(f"{name} did nothing: {metric!r} was never logged.{hint}")

    def _client_starts(self, batch: Any) -> None:
        self.client = batch.client if isinstance(batch, ClientTask) else None

    # -- what there is to say ------------------------------------------------------------------

    @property
    def rounds_done(self) -> int:
        """How many rounds the global model has behind it."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    @property
    def rounds_run(self) -> int:
        """How many of these this process has run."""
        return 0 if self._first_round is None else self.rounds_done - self._first_round

    @property
    def where(self) -> str:
        """Client and round at work, as messages name them."""
        where = f"client {self.client}" if self.client is not None else ""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return where
        return f"{where}, round {self.rounds_done}".removeprefix(", ")

    def interruption(self) -> str:
        """Return what an interrupted run has saved, and how to go on."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return "interrupted."
        nothing = "no further round is saved." if self.checkpoint else "no round is saved."
        return f"interrupted in round {self.rounds_done}: {self.saved() or nothing}"

    def saved(self) -> str:
        """Return which checkpoint holds which rounds; nothing if there is none."""
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            return ""
        rounds = "round 0" if self.rounds_done <= 1 else f"rounds 0..{self.rounds_done - 1}"
        return f"{_shown(checkpoint)} holds {rounds}; go on with --ckpt_path last."

    def last_checkpoint(self) -> Path | None:
        """Return the run's last checkpoint, if it has one."""
        folder = self.run_folder()
        path = folder / CHECKPOINTS / LAST_CHECKPOINT if folder is not None else None
        return path if path is not None and path.exists() else None

    @property
    def reports_errors(self) -> bool:
        """Whether this process is the one of its run to say how that ended."""
        strategy = self.trainer.strategy if self.trainer is not None else None
        return not isinstance(strategy, FederatedDDPStrategy) or strategy.reports_errors

    # -- the folder ----------------------------------------------------------------------------

    def run_folder(self) -> Path | None:
        """Return the first logger's folder, if there is a logger, and its folder can be made."""
        if self.trainer is None or not self.trainer.is_global_zero or not self.trainer.loggers:
            return None
        try:
            folder = getattr(self.trainer.loggers[0], "log_dir", None)
        except FedLightningError:
            return None
        return Path(folder) if isinstance(folder, str) else None

    def before_run(self, trainer: pl.Trainer) -> None:
        """Remember the trainer, and what is there before it runs."""
        self.trainer = trainer
        if isinstance(trainer.strategy, FederatedDDPStrategy):
            trainer.strategy.on_forced_exit = self.report
        if trainer.loggers and isinstance(
            root := getattr(trainer.loggers[0], "root_dir", None), str
        ):
            self._root = Path(root).resolve()
            self._before = _entries(self._root)
            self._missing = [
                # os.path, because a Path raises where a folder above may not be looked into
                path
                for path in (self._root, *self._root.parents)
                if not os.path.exists(path)
            ]

    def remove_half_made(self) -> None:
        """Remove the folder of a run that ended before the first round that it ran."""
        folder = self.run_folder()
        if folder is None or folder.resolve().parent != self._root or folder.name in self._before:
            return
        if self.rounds_run > 0 or any((folder / CHECKPOINTS).glob("*.ckpt")):
            return
        shutil.rmtree(folder, ignore_errors=True)
        for parent in self._missing:
            try:
                parent.rmdir()
            except OSError:  # not empty: somebody else's by now
                break


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder; a run without one leaves none.

    Lightning's own would write into the current folder then, and over the user's config. A run that
    goes on in its folder replaces the file when it does go on, by one that runs all of it again.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the config."""
        if trainer.loggers and not _goes_on(trainer):
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the config of a run that goes on."""
        if trainer.loggers and _goes_on(trainer):
            self.config = self.config.clone()
            self.config["ckpt_path"] = None
            super().setup(trainer, pl_module, "fit")


def _goes_on(trainer: pl.Trainer) -> bool:
    resumption = getattr(trainer, "resumption", None)
    return isinstance(resumption, Resumption) and resumption.in_place


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if os.access(folder, os.R_OK) else set()


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
