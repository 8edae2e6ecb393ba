"""What a run was doing when it failed, what it has saved, and which folder it leaves."""

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
    """Records what a run was doing, so that a failure can be reported precisely.

    Attributes:
        trainer: The trainer, once it runs.
        client: The client that trains or is evaluated, ``None`` between clients.
        checkpoint: The checkpoint that the run starts from.
        report: Reports how the command ended, and returns its exit code.
        environment: The environment variables before the run.
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

    # -- the current client ---------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the round that training starts with."""
        self._first_round = trainer.current_epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Remember the client that trains."""
        self._client_starts(batch)

    def on_train_batch_end(self, *_: Any) -> None:
        """Forget the client."""
        self.client = None

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Remember the client whose data the model is evaluated on."""
        self._client_starts(batch)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Forget the client."""
        self.client = None

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Remember the client whose data the model is evaluated on."""
        self._client_starts(batch)

    def on_test_batch_end(self, *_: Any) -> None:
        """Forget the client."""
        self.client = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of a monitored metric that was never logged."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            metric = getattr(callback, "monitor", None)
            if isinstance(metric, str) and metric not in trainer.callback_metrics:
                hint = did_you_mean(metric, trainer.callback_metrics)
                name = type(callback).__name__
                rank_zero_warn(f"{name} did nothing: {metric!r} was never logged.{hint}")

    def _client_starts(self, batch: Any) -> None:
        self.client = batch.client if isinstance(batch, ClientTask) else None

    # -- reports --------------------------------------------------------------------------------

    @property
    def rounds_done(self) -> int:
        """Number of rounds that the global model has been trained for."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    @property
    def rounds_run(self) -> int:
        """Number of rounds that this process has run."""
        return 0 if self._first_round is None else self.rounds_done - self._first_round

    @property
    def where(self) -> str:
        """The current client and round, as messages name them."""
        where = f"client {self.client}" if self.client is not None else ""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return where
        return f"{where}, round {self.rounds_done}".removeprefix(", ")

    def interruption(self) -> str:
        """Return what an interrupted run has saved, and how to resume it."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return "interrupted."
        nothing = "no further round is saved." if self.checkpoint else "no round is saved."
        return f"interrupted in round {self.rounds_done}: {self.saved() or nothing}"

    def saved(self) -> str:
        """Return which rounds the last checkpoint holds; an empty string without one."""
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            return ""
        rounds = "round 0" if self.rounds_done <= 1 else f"rounds 0..{self.rounds_done - 1}"
        return f"{_relative(checkpoint)} holds {rounds}; resume with --ckpt_path last."

    def last_checkpoint(self) -> Path | None:
        """Return the run's last checkpoint, if it has one."""
        folder = self.run_folder()
        path = folder / CHECKPOINTS / LAST_CHECKPOINT if folder is not None else None
        return path if path is not None and path.exists() else None

    @property
    def reports_errors(self) -> bool:
        """Whether this is the process that reports for the whole run."""
        strategy = self.trainer.strategy if self.trainer is not None else None
        return not isinstance(strategy, FederatedDDPStrategy) or strategy.reports_errors

    # -- the folder ----------------------------------------------------------------------------

    def run_folder(self) -> Path | None:
        """Return the first logger's folder, ``None`` if there is none or it cannot be created."""
        if self.trainer is None or not self.trainer.is_global_zero or not self.trainer.loggers:
            return None
        try:
            folder = getattr(self.trainer.loggers[0], "log_dir", None)
        except FedLightningError:
            return None
        return Path(folder) if isinstance(folder, str) else None

    def before_run(self, trainer: pl.Trainer) -> None:
        """Remember the trainer, and the runs that exist before it starts."""
        self.trainer = trainer
        if isinstance(trainer.strategy, FederatedDDPStrategy):
            trainer.strategy.on_forced_exit = self.report
        if trainer.loggers and isinstance(
            root := getattr(trainer.loggers[0], "root_dir", None), str
        ):
            self._root = Path(root).resolve()
            self._before = _entries(self._root)
            self._missing = [
                # os.path, because a Path raises where a folder above is not readable
                path
                for path in (self._root, *self._root.parents)
                if not os.path.exists(path)
            ]

    def remove_empty_run(self) -> None:
        """Remove the folder of a run that failed before it had finished a round."""
        folder = self.run_folder()
        if folder is None or folder.resolve().parent != self._root or folder.name in self._before:
            return
        if self.rounds_run > 0 or any((folder / CHECKPOINTS).glob("*.ckpt")):
            return
        shutil.rmtree(folder, ignore_errors=True)
        for parent in self._missing:
            try:
                parent.rmdir()
            except OSError:  # not empty
                break


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder; a run without one leaves none.

    Lightning's own callback would then write into the current folder, over the user's config. A run
    resumed in its folder replaces the file once training starts, by one that repeats the whole run.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the config."""
        if trainer.loggers and not _resumes_in_place(trainer):
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the config of a resumed run."""
        if trainer.loggers and _resumes_in_place(trainer):
            self.config = self.config.clone()
            self.config["ckpt_path"] = None
            super().setup(trainer, pl_module, "fit")


def _resumes_in_place(trainer: pl.Trainer) -> bool:
    resumption = getattr(trainer, "resumption", None)
    return isinstance(resumption, Resumption) and resumption.in_place


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if os.access(folder, os.R_OK) else set()


def _relative(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
