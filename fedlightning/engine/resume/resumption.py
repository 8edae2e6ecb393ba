"""Resuming from a checkpoint: what is checked first, and in which folder the run continues."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.nn.parameter import is_lazy

from fedlightning.core.overrides import overrides
from fedlightning.datamodules import FederatedDataModule
from fedlightning.engine._lightning.trainer_hooks import continue_logger
from fedlightning.engine.written_folder import folder_on_rank_0
from fedlightning.errors import CheckpointError
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.reporting.round_table import RoundTable
from fedlightning.storage.checkpoint_reader import (
    check_network,
    is_good,
    loop_state,
    read_checkpoint,
    rounds_in,
)
from fedlightning.storage.run_layout import (
    CHECKPOINTS,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    ROUNDS,
)

__all__ = [
    "Resumption",
    "check_loadable",
    "check_resumable",
    "cut_back",
    "load_weights",
    "note_loggers",
    "prepared_data",
    "resumption_of",
    "run_folder",
]

# Hooks in which layers may be made, or the keys of a checkpoint changed.
_LATE = ("setup", "configure_model", "on_load_checkpoint")


@dataclass(frozen=True)
class Resumption:
    """A run that resumes from a checkpoint.

    Args:
        path: The checkpoint.
        round: The next round.
        version: The version of the run that wrote it, if this one continues in the same folder.
        loggers: Type and version of each logger of that run.
    """

    path: Path
    round: int
    version: int | str | None = None
    loggers: tuple[tuple[str, Any], ...] = ()

    @property
    def in_place(self) -> bool:
        """Whether the run continues in the folder of the run that wrote the checkpoint."""
        return self.version is not None

    def continue_loggers(self, loggers: Sequence[Logger]) -> None:
        """Continue the loggers of that run, if this one continues in its folder."""
        if self.version is None:
            return
        first = loggers[0]
        if isinstance(first, RoundCSVLogger):
            first.continue_in(self.version)
        known = list(self.loggers)
        for logger in loggers[1:]:
            match = next((entry for entry in known if entry[0] == type(logger).__name__), None)
            if match is not None:
                known.remove(match)
                continue_logger(logger, version=match[1], step=self.round)


def cut_back(trainer: pl.Trainer, resumption: Resumption | None, rounds: int) -> None:
    """Remove from the tables of rounds what an earlier run wrote after the checkpoint.

    Args:
        trainer: The trainer; every rank must call this.
        resumption: How the run goes on, if it is resumed.
        rounds: How many rounds have a result.
    """
    if resumption is not None and resumption.in_place:
        for logger in trainer.loggers:
            if isinstance(logger, RoundCSVLogger):
                logger.truncate(resumption.round)
    folder = folder_on_rank_0(trainer)
    if folder is not None and (path := folder / ROUNDS).exists():
        RoundTable(path).truncate(rounds)


def resumption_of(path: Path, checkpoint: dict[str, Any], trainer: pl.Trainer) -> Resumption:
    """Return how a run resumes from a checkpoint.

    It continues in the folder of the run that wrote the checkpoint if both have the same logger and
    root folder, and the checkpoint is the newest one there. From any other checkpoint the run
    branches off into a new folder, and the old one stays as it is.
    """
    loggers = tuple(
        (str(kind), version)
        for kind, version in checkpoint.get("fedlightning", {}).get("loggers", [])
    )
    version = _version_of(path, trainer.loggers)
    return Resumption(path, rounds_in(checkpoint), version, loggers)


def check_resumable(checkpoint: dict[str, Any], path: Path, module: pl.LightningModule) -> None:
    """Check that a module can resume from a checkpoint.

    Raises:
        CheckpointError: It has only weights, or those of another network.
    """
    try:
        if "optimizer_states" not in checkpoint or "extra" not in loop_state(checkpoint):
            raise CheckpointError(
                "it has only weights (save_weights_only), so a run cannot resume from it; `test` "
                "and `predict` can use it."
            )
        _compare_network(checkpoint, module)
    except CheckpointError as error:
        raise CheckpointError(f"ckpt_path={str(path)!r}: {error}") from None


def check_loadable(path: Path, module: pl.LightningModule) -> None:
    """Check that a module can load a checkpoint's weights, before anything is written.

    Raises:
        CheckpointError: The file is not as a run wrote it, or of another network.
    """
    checkpoint = read_checkpoint(path)
    try:
        _compare_network(checkpoint, module)
    except CheckpointError as error:
        raise CheckpointError(f"ckpt_path={str(path)!r}: {error}") from None


def load_weights(
    load: Callable[[], None], checkpoint: Mapping[str, Any], path: Any, module: pl.LightningModule
) -> None:
    """Load a checkpoint's weights into a complete module; name the first one that does not fit.

    Args:
        load: Loads them.
        checkpoint: The content of the file.
        path: The file.
        module: The module.

    Raises:
        CheckpointError: They are those of another network.
    """
    try:
        load()
    except RuntimeError as error:
        try:
            check_network(checkpoint, module)
        except CheckpointError as difference:
            raise CheckpointError(f"ckpt_path={str(path)!r}: {difference}") from error
        raise


def _compare_network(checkpoint: dict[str, Any], module: pl.LightningModule) -> None:
    """Compare networks as far as that is possible before the run has set the module up."""
    late = any(overrides(module, hook, pl.LightningModule) for hook in _LATE)
    if module.strict_loading and not late and not any(map(is_lazy, module.parameters())):
        check_network(checkpoint, module)


def prepared_data(data: Any) -> FederatedDataModule | None:
    """Return the data module, set up, if that is possible before the run starts.

    A data module that overrides ``setup`` may need the trainer for it.
    """
    if not isinstance(data, FederatedDataModule):
        return None
    if type(data).setup is not FederatedDataModule.setup:
        return None
    rank_zero_only(data.prepare_data)()
    data.setup("fit")
    return data


def _version_of(path: Path, loggers: Sequence[Logger]) -> int | str | None:
    """Return the first logger's version whose folder has the checkpoint."""
    folder, first = path.resolve().parent.parent, loggers[0] if loggers else None
    newest = path.name == LAST_CHECKPOINT or (
        path.name == PREVIOUS_CHECKPOINT and not is_good(path.with_name(LAST_CHECKPOINT))
    )
    if not newest or path.resolve().parent.name != CHECKPOINTS:
        return None
    if not isinstance(first, RoundCSVLogger):
        return None
    if first.given_version is not None:
        same = Path(first.log_dir).resolve() == folder
        return first.given_version if same else None
    found = re.fullmatch(r"version_(\d+)", folder.name)
    if found is None or folder.parent != Path(first.root_dir).resolve():
        return None
    return int(found[1])


def note_loggers(checkpoint: dict[str, Any], loggers: Sequence[Logger]) -> None:
    """Write kind and version of each logger into a checkpoint, for :func:`resumption_of`."""
    known = [(type(logger).__name__, logger.version) for logger in loggers]
    checkpoint.setdefault("fedlightning", {})["loggers"] = known


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Return the folder of a run, ``None`` if it has none of its own; a collective call."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if trainer.loggers:
        own = isinstance(trainer.loggers[0], (CSVLogger, TensorBoardLogger))  # others share one
        folder = trainer.log_dir if own else None
        return Path(folder) if folder is not None else None
    callback = trainer.checkpoint_callback
    return Path(trainer.default_root_dir, CHECKPOINTS) if callback is not None else None
