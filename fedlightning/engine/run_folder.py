"""A trainer's dealings with files: checkpoints found, compared and written; a folder of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.trainer.states import TrainerFn

from fedlightning.engine._lightning.trainer_hooks import requeued_checkpoint
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resume.resumption import (
    Resumption,
    check_resumable,
    cut_back,
    note_loggers,
    prepared_data,
    resumption_of,
    run_folder,
)
from fedlightning.engine.resume.run_settings import warn_of_changes
from fedlightning.errors import CheckpointError
from fedlightning.federation.settings import Federation
from fedlightning.storage.checkpoint_io import latest_checkpoint
from fedlightning.storage.cleanup import ClientStateFiles
from fedlightning.storage.files import remove_stale_files
from fedlightning.storage.locks import RunLock
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENT_STATES,
    LAST_CHECKPOINT,
    remove_unfinished,
)

__all__ = ["RunKeepingTrainer"]


class RunKeepingTrainer(pl.Trainer):
    """A Trainer that keeps its run folder to itself and its checkpoints in order."""

    federation: Federation
    resumption: Resumption | None = None
    _lock: RunLock | None = None
    _personal_files: ClientStateFiles | None = None

    @property
    def federated_loop(self) -> FederatedLoop:
        """The loop that runs the rounds."""
        assert isinstance(self.fit_loop, FederatedLoop)
        return self.fit_loop

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save the global model and the run's state; amid a round, those of its start."""
        with self.federated_loop.showing_global():
            super().save_checkpoint(*args, **kwargs)
        self._clear_personal(Path(args[0] if args else kwargs["filepath"]))

    def _clear_personal(self, saved: Path) -> None:
        """Remove what clients had kept in rounds that no checkpoint goes back to any more."""
        in_use = self.federated_loop.personal.files
        if not in_use:
            return
        folder = self.log_dir  # every rank must ask
        if folder is None or not self.is_global_zero or not saved.is_file():
            return
        run = Path(folder).absolute()
        files = self._personal_files
        if files is None or files.folder.parent != run:
            root = Path(self.default_root_dir).absolute()
            self._personal_files = files = ClientStateFiles(run / CLIENT_STATES, run, root)
        files.saved(saved, in_use)
        if saved.name == LAST_CHECKPOINT:
            files.remove_superseded(in_use)

    def _found(self, ckpt_path: Any) -> Any:
        """Return the file that a name stands for, a requeued job's own among them."""
        if ckpt_path == "last":
            return latest_checkpoint(self.default_root_dir)
        if ckpt_path == "hpc" or (ckpt_path is None and SLURMEnvironment.detect()):
            found = requeued_checkpoint(self)
            if found is None and ckpt_path == "hpc":
                raise CheckpointError(
                    f"ckpt_path='hpc': no hpc_ckpt_*.ckpt of a preempted job in "
                    f"{self.default_root_dir}; give a path, or 'last'."
                )
            return found
        return ckpt_path

    def _find(self, kwargs: dict[str, Any], model: Any, args: tuple[Any, ...]) -> None:
        """Find the checkpoint to evaluate, and say where it does not go with the settings."""
        if kwargs.get("ckpt_path") in (None, "", "best"):
            return
        path = kwargs["ckpt_path"] = self._found(kwargs["ckpt_path"])
        module = model or self.lightning_module
        data = prepared_data(kwargs.get("datamodule") or next(iter(args), None))
        checkpoint = self.strategy.checkpoint_io.load_checkpoint(path)
        warn_of_changes(checkpoint, path, self.federation, module, data)

    @contextmanager
    def _resuming(self, path: Any, model: pl.LightningModule, data: Any) -> Iterator[None]:
        """Check the checkpoint before anything is written; give the folder free at the end."""
        self.resumption, rounds = None, self.max_epochs
        try:
            if path not in (None, "", "best"):
                self.resumption = self._check_checkpoint(Path(path), model, data)
                if rounds is not None and 0 <= rounds < self.resumption.round:
                    self.fit_loop.max_epochs = self.resumption.round  # nothing to do, no mistake
            with warnings.catch_warnings():
                if self.resumption is not None and self.resumption.in_place:
                    warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
                yield
        finally:
            self.fit_loop.max_epochs = rounds
            if self._lock is not None:
                self._lock.release()

    def _check_checkpoint(self, path: Path, model: pl.LightningModule, data: Any) -> Resumption:
        checkpoint = self.strategy.checkpoint_io.load_checkpoint(path)
        check_resumable(checkpoint, path, model)
        if (known := prepared_data(data)) is not None:
            self.federated_loop.compare_settings(checkpoint, model, known)
        return resumption_of(path, checkpoint, self)

    def _note_loggers(self, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint which loggers the run has."""
        note_loggers(checkpoint, self.loggers)

    def _cut_back(self) -> None:
        """Cut the tables of rounds back to the checkpoint: nothing can refuse it any more."""
        cut_back(self, self.resumption, self.federated_loop.rounds_aggregated)

    def _open_folder(self) -> None:
        """Take the run's folder, and clear away what a killed process has left there."""
        if self.state.fn != TrainerFn.FITTING or self.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.resumption is not None:
            self.resumption.continue_loggers(self.loggers)
        folder, failure = run_folder(self), None
        if folder is not None and self.is_global_zero:
            self._lock = RunLock(folder)
            try:
                self._lock.acquire()
            except Exception as error:
                failure = error
            else:
                for place in (folder, folder / CHECKPOINTS, folder / CLIENT_STATES):
                    remove_stale_files(place)
                remove_unfinished(folder)
        self.federated_loop.workers.agree(failure)
