"""What every federated run has unless the user says otherwise: loggers and callbacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.plugins.io import CheckpointIO

from fedlightning.callbacks import LastCheckpoint, RoundProgressBar, RunRecord
from fedlightning.storage.checkpoint_io import AtomicCheckpointIO
from fedlightning.errors import ConfigError
from fedlightning.reporting.csv_logger import RoundCSVLogger
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.reporting.tensorboard import TensorBoardBeside

__all__ = ["callbacks_of", "devices_of", "loggers_of", "plugins_of", "strategy_of"]

_MOST_WORKERS = 64
_START_METHODS: dict[str, Literal["popen", "spawn", "fork"]] = {
    "auto": "popen",
    "ddp": "popen",
    "ddp_spawn": "spawn",
    "ddp_fork": "fork",
    "ddp_notebook": "fork",
}


def devices_of(kwargs: dict[str, Any], cohort_size: int | float) -> Any:
    """Return how many workers: one unless the user says otherwise, ``auto`` is one for each core.

    Args:
        kwargs: The trainer's arguments.
        cohort_size: The federation's; more workers than clients a round would be idle.

    Raises:
        ConfigError: On CPUs, another number than could be started.
    """
    given = kwargs.get("devices")
    if given is None:
        return 1
    accelerator = kwargs.get("accelerator") or "auto"
    on_cpu = accelerator == "cpu" or (
        accelerator == "auto"
        and not (torch.cuda.is_available() or torch.backends.mps.is_available())
    )
    if not on_cpu:
        return given
    if given != "auto":
        return _checked_workers(given)
    return min(_usable_cores(), cohort_size) if isinstance(cohort_size, int) else _usable_cores()


def _checked_workers(given: Any) -> Any:
    """Refuse what is no number of processes, or more of them than a machine can start."""
    most = max(_MOST_WORKERS, 4 * _usable_cores())
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise ConfigError(
            f"trainer.devices must be auto or a number of workers from 1 to {most} on this "
            f"machine's {_usable_cores()} cores, got {given!r}."
        )
    return given


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # what a container or SLURM leaves us
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def strategy_of(kwargs: dict[str, Any], num_threads: int | None = 1) -> Any:
    """Return the strategy: for several workers, ``ddp`` without its wrapper."""
    given = kwargs.get("strategy") or "auto"
    devices = kwargs["devices"]
    several = kwargs.get("num_nodes", 1) > 1 or (
        len(devices) > 1 if isinstance(devices, list) else devices not in (1, "1", "0,")
    )
    if not several or given not in _START_METHODS:
        return given
    start = "fork" if given == "auto" and is_interactive() else _START_METHODS[given]
    return FederatedDDPStrategy(num_threads=num_threads, start_method=start)


def is_interactive() -> bool:
    """Whether Python runs in a notebook or an interactive shell, which cannot be started again."""
    return hasattr(sys, "ps1")


def loggers_of(given: Any, root: Path) -> list[Logger]:
    """Return the loggers to use: a CSV file always comes first, because its folder is the run's."""
    if given is False:
        return []
    csv = RoundCSVLogger(root)
    if given is None or given is True:
        return [csv, TensorBoardBeside(csv)] if RequirementCache("tensorboard") else [csv]
    loggers = list(given) if isinstance(given, Iterable) else [given]
    return loggers if any(isinstance(logger, CSVLogger) for logger in loggers) else [csv, *loggers]


def plugins_of(given: Any) -> list[Any]:
    """Return the user's plugins, and one that writes checkpoints as a whole or not at all."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    plugins = list(given) if several else [given] if given is not None else []
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    return plugins


def callbacks_of(kwargs: dict[str, Any]) -> list[Callback]:
    """Return the user's callbacks and those that every federated run has."""
    given = kwargs.get("callbacks") or []
    callbacks: list[Callback] = [given] if isinstance(given, Callback) else list(given)
    if kwargs.get("enable_progress_bar") is not False and not _has(callbacks, ProgressBar):
        callbacks.append(RoundProgressBar())
    if kwargs["logger"] and not _has(callbacks, RunRecord):
        callbacks.append(RunRecord())
    if kwargs.get("enable_checkpointing") is not False and not _has(callbacks, LastCheckpoint):
        callbacks.append(LastCheckpoint())
    return callbacks


def _has(callbacks: Iterable[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
