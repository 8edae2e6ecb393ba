"""What a run was doing when it ended, what it has saved, and which folder it leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from fedlightning.datamodules import ClientTask

__all__ = ["RunWatch", "SaveRunConfig"]

_OF_A_RUN = ("config.yaml", "metrics.csv", "hparams.yaml", "checkpoints")


class RunWatch(pl.Callback):
    """Follows a run for the sake of what is said at its end, should it not end well.

    Attributes:
        trainer: The trainer, once there is one that runs.
        client: The client at work, ``None`` between clients.
    """

    def __init__(self) -> None:
        self.trainer: pl.Trainer | None = None
        self.client: int | None = None
        self._folder: Path | None = None
        self._parents: list[Path] = []

    # -- the client at work --------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember the trainer, and the run folder if it is a new one."""
        self.trainer = trainer
        if trainer.loggers and trainer.log_dir is not None and trainer.is_global_zero:
            folder = Path(trainer.log_dir)
            if not any((folder / name).exists() for name in _OF_A_RUN):
                self._folder = folder

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

    def _client_starts(self, batch: Any) -> None:
        self.client = batch.client if isinstance(batch, ClientTask) else None

    # -- what there is to say ------------------------------------------------------------------

    @property
    def rounds_done(self) -> int:
        """How many rounds the global model has behind it."""
        return self.trainer.current_epoch if self.trainer is not None else 0

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
        began = f"interrupted in round {self.rounds_done}: "
        checkpoint = self._last_checkpoint()
        if checkpoint is None:
            return began + "no round is saved."
        rounds = "round 0" if self.rounds_done <= 1 else f"rounds 0..{self.rounds_done - 1}"
        return f"{began}{_shown(checkpoint)} holds {rounds}; go on with --ckpt_path last."

    def _last_checkpoint(self) -> Path | None:
        if self.trainer is None or self.trainer.log_dir is None or not self.trainer.loggers:
            return None
        path = Path(self.trainer.log_dir) / "checkpoints" / "last.ckpt"
        return path if path.exists() else None

    # -- the folder ----------------------------------------------------------------------------

    def remember_parents(self, root: str) -> None:
        """Remember which folders above a run folder are not there yet."""
        logs = Path(root).resolve() / "lightning_logs"
        self._parents = [path for path in (logs, *logs.parents) if not path.exists()]

    def remove_half_made(self) -> None:
        """Remove the folder of a run that ended before its first round did."""
        if self._folder is None or self._holds_results(self._folder):
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        for parent in self._parents:
            try:
                parent.rmdir()
            except OSError:  # not empty: of use to somebody else
                break

    def _holds_results(self, folder: Path) -> bool:
        return self.rounds_done > 0 or any(folder.glob("checkpoints/*.ckpt"))


class SaveRunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder; a run without one leaves none.

    Lightning's own would write into the current folder then, and over the user's config.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the config."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
