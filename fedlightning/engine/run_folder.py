"""The folder of a run: its lock, its checkpoints and what a resumed run continues there."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.trainer.states import TrainerFn

from fedlightning.core.tracebacks import causes
from fedlightning.engine._lightning.trainer_hooks import requeued_checkpoint
from fedlightning.engine.loop import FederatedLoop
from fedlightning.engine.resume.resumption import (
    Resumption,
    check_resumable,
    cut_back,
    load_weights,
    note_loggers,
    prepared_data,
    resumption_of,
    run_folder,
)
from fedlightning.engine.resume.run_settings import warn_of_changes
from fedlightning.engine.workers.nodes import on_another_node
from fedlightning.errors import CheckpointError, FedLightningError, WorkerLost
from fedlightning.storage.checkpoint_io import checkpoint_at, has_checkpoint, latest_checkpoint
from fedlightning.storage.cleanup import ClientStateFiles
from fedlightning.storage.files import remove_stale_files, write_atomically
from fedlightning.storage.locks import RunLock
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENT_STATES,
    ENDED,
    LAST_CHECKPOINT,
    remove_unfinished,
)

__all__ = ["RunFolder"]


class RunFolder:
    """What a trainer does with files: find, compare and resume checkpoints, lock its folder.

    Args:
        trainer: The trainer.
        loop: Its loop.

    Attributes:
        resumption: What the run under way continues; ``None`` if it starts anew.
    """

    def __init__(self, trainer: pl.Trainer, loop: FederatedLoop) -> None:
        self.resumption: Resumption | None = None
        self._trainer = trainer
        self._loop = loop
        self._lock: RunLock | None = None
        self._client_files: ClientStateFiles | None = None

    def clear_client_states(self, saved: Path) -> None:
        """Remove what clients had kept in rounds that no checkpoint goes back to any more."""
        in_use = self._loop.client_store.files
        if not in_use:
            return
        folder = self._trainer.log_dir  # every rank must ask
        if folder is None or not self._trainer.is_global_zero or not saved.is_file():
            return
        run = Path(folder).absolute()
        files = self._client_files
        if files is None or files.folder.parent != run:
            root = Path(self._trainer.default_root_dir).absolute()
            self._client_files = files = ClientStateFiles(run / CLIENT_STATES, run, root)
        files.saved(saved, in_use)
        if saved.name == LAST_CHECKPOINT:
            files.remove_superseded(in_use)

    def agreed(self, path: Any) -> Any:
        """Return rank 0's checkpoint on every rank: nodes may not share a folder."""
        return self._loop.workers.from_rank_0(path)

    @property
    def _elsewhere(self) -> bool:
        """Whether another node finds, reads and checks the checkpoint for this one."""
        return on_another_node(self._trainer.num_nodes)

    def found(self, ckpt_path: Any) -> Any:
        """Return the file that a name or a folder stands for, a requeued job's own among them."""
        if self._elsewhere:
            return None
        if ckpt_path == "auto":
            ckpt_path = "last" if has_checkpoint(self._trainer.default_root_dir) else None
        if ckpt_path == "last":
            return latest_checkpoint(self._trainer.default_root_dir)
        if ckpt_path == "hpc" or (ckpt_path is None and SLURMEnvironment.detect()):
            found = requeued_checkpoint(self._trainer)
            if found is None and ckpt_path == "hpc":
                raise CheckpointError(
                    f"ckpt_path='hpc': no hpc_ckpt_*.ckpt of a preempted job in "
                    f"{self._trainer.default_root_dir}; give a path, or 'last'."
                )
            return found
        return ckpt_path if ckpt_path in (None, "", "best") else checkpoint_at(ckpt_path)

    def find(self, kwargs: dict[str, Any], model: Any, args: tuple[Any, ...]) -> None:
        """Find the checkpoint to evaluate, and say where it does not go with the settings."""
        if kwargs.get("ckpt_path") in (None, "", "best"):
            return
        path = kwargs["ckpt_path"] = self.found(kwargs["ckpt_path"])
        if path is None:
            return
        module = model if model is not None else self._trainer.lightning_module
        data = prepared_data(kwargs.get("datamodule") or next(iter(args), None))
        checkpoint = self._trainer.strategy.checkpoint_io.load_checkpoint(path)
        warn_of_changes(checkpoint, path, self._loop.federation, module, data)

    @contextmanager
    def resuming(self, path: Any, model: pl.LightningModule, data: Any) -> Iterator[None]:
        """Check the checkpoint before anything is written; give the folder free at the end."""
        self.resumption, rounds = None, self._trainer.max_epochs
        try:
            if path not in (None, "", "best"):
                self.resumption = self._check_checkpoint(Path(path), model, data)
            with warnings.catch_warnings():
                if self.resumption is not None and self.resumption.in_place:
                    warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
                yield
        except BaseException as error:
            if self._lock is not None and self._lock.held:
                _note_end(self._lock.folder, error)
            raise
        finally:
            self._trainer.fit_loop.max_epochs = rounds
            if self._lock is not None:
                self._lock.release()

    def _check_checkpoint(self, path: Path, model: pl.LightningModule, data: Any) -> Resumption:
        checkpoint = self._trainer.strategy.checkpoint_io.load_checkpoint(path)
        check_resumable(checkpoint, path, model)
        if (known := prepared_data(data)) is not None:
            self._loop.compare_settings(checkpoint, model, known)
        return resumption_of(path, checkpoint, self._trainer)

    def load_weights(self, load: Callable[[], None], checkpoint: Mapping[str, Any]) -> None:
        """Load a checkpoint's weights into the module, which is complete by now."""
        module = self._trainer.lightning_module
        load_weights(load, checkpoint, self._trainer.ckpt_path, module)

    def note_loggers(self, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint which loggers the run has."""
        note_loggers(checkpoint, self._trainer.loggers)

    def cut_back(self) -> None:
        """Cut the tables of rounds back to the checkpoint: nothing can refuse it any more."""
        cut_back(self._trainer, self.resumption, self._loop.rounds_aggregated)

    def open(self) -> None:
        """Take the run's folder, and clear away what a killed process has left there."""
        if self._trainer.state.fn != TrainerFn.FITTING:
            return
        self.resumption = self._loop.workers.from_rank_0(self.resumption)
        rounds, done = self._trainer.max_epochs, self.resumption.round if self.resumption else 0
        if rounds is not None and 0 <= rounds < done:
            self._trainer.fit_loop.max_epochs = done  # nothing to do, no mistake
        if self._trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.resumption is not None:
            self.resumption.continue_loggers(self._trainer.loggers)
        folder, failure = run_folder(self._trainer), None
        if folder is not None and self._trainer.is_global_zero:
            self._lock = RunLock(folder)
            try:
                self._lock.acquire()
            except Exception as error:
                failure = error
            else:
                for place in (folder, folder / CHECKPOINTS, folder / CLIENT_STATES):
                    remove_stale_files(place)
                (folder / ENDED).unlink(missing_ok=True)
                remove_unfinished(folder)
        self._loop.workers.agree(failure)


def _note_end(folder: Path, error: BaseException) -> None:
    """Write into a run's folder why it ended; the error itself matters more than this file."""
    ours = next((link for link in causes(error) if isinstance(link, FedLightningError)), None)
    if ours is not None:
        stopped = isinstance(ours, WorkerLost) and ours.exit_code > 128  # by a signal
    else:
        signals = (KeyboardInterrupt, SystemExit)
        stopped = any(isinstance(link, signals) for link in causes(error))
    text = f"{ours}" if ours is not None else f"{type(error).__name__}: {error}"
    note = {"interrupted": stopped, "error": "" if stopped else " ".join(text.split())}
    with contextlib.suppress(FedLightningError):
        write_atomically(folder / ENDED, json.dumps(note, ensure_ascii=False).encode() + b"\n")
