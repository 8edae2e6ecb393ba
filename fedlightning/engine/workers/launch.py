"""How many workers a run has, and how they are started."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

import torch

from fedlightning.core.validation import is_integer
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import ConfigError

__all__ = ["devices_of", "strategy_of"]


_MOST_WORKERS = 64


_START_METHODS: dict[str, Literal["popen", "spawn", "fork"]] = {
    "auto": "popen",
    "ddp": "popen",
    "ddp_spawn": "spawn",
    "ddp_fork": "fork",
    "ddp_notebook": "fork",
}


def devices_of(kwargs: dict[str, Any], cohort_size: int | float | None) -> Any:
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
    """Refuse what is not a number of processes, or more of them than a machine can start."""
    most = max(_MOST_WORKERS, 4 * _usable_cores())
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    if not is_integer(number) or not 1 <= number <= most:
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
