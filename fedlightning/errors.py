"""Errors that a user can correct, with their exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EnvironmentFailure",
    "FedLightningError",
    "FederationError",
    "WorkerLost",
    "did_you_mean",
    "nearest",
]


class FedLightningError(Exception):
    """An error that the user can correct; its text has the key, the value and the way out.

    The command line prints it as one line, ``error: <text>``, and exits with ``exit_code``.
    """

    exit_code = 1


class ConfigError(FedLightningError):
    """A setting, or a combination of settings, that cannot work."""

    exit_code = 2


class DataError(FedLightningError):
    """Data that cannot be read, divided or used."""

    exit_code = 3


class CheckpointError(FedLightningError):
    """A checkpoint that is missing, damaged or from something else."""

    exit_code = 4


class FederationError(FedLightningError):
    """A client or a round that failed."""

    exit_code = 5


class WorkerLost(FederationError):
    """Another process of the run died, stopped or failed, so the run cannot continue.

    Args:
        rank: The rank of the worker.
        text: What happened to it.
        exit_code: The exit code of this process.
        died: Whether it was killed or stopped, rather than ended by its own error.
    """

    def __init__(self, rank: int, text: str, exit_code: int = 5, died: bool = True) -> None:
        super().__init__(text)
        self.rank = rank
        self.exit_code = exit_code
        self.died = died


class EnvironmentFailure(FedLightningError):
    """A fault of the machine: a missing package, a full disk, a folder that is not writable."""

    exit_code = 6


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the choice nearest to ``name``, or an empty string.

    Example:
        >>> did_you_mean("net.cf", ["net.fc", "net.conv1"])
        " Did you mean 'net.fc'?"
        >>> did_you_mean("zebra", ["net.fc"])
        ''
    """
    near = nearest(name, choices)
    return "" if near is None else f" Did you mean '{near}'?"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice nearest to ``name``, ``None`` if none is near.

    Example:
        >>> nearest("FedBabu", ["FedAvg", "FedBN", "FedBABU"])
        'FedBABU'
    """
    known = list(choices)
    by_lower = {choice.lower(): choice for choice in reversed(known)}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    alike = difflib.get_close_matches(name, known, n=1) or [
        by_lower[key] for key in difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    ]
    return next(iter(alike), None)
