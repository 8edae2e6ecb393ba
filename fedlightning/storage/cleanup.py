"""Removing files of client states that no checkpoint needs any more."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fedlightning.errors import CheckpointError, EnvironmentFailure
from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint

__all__ = ["ClientStateFiles"]

Identity = tuple[int, int, int, int]
_REMEMBERED = 8  # lists of names: each round writes another checkpoint under the same name


class ClientStateFiles:
    """The files of client states in a run folder, and the checkpoints that need them.

    A file is named by a digest of its content and never changes, so it can be removed once neither
    the run nor a checkpoint refers to it. Checkpoints that this process did not write are read,
    usually once each.

    Args:
        folder: The folder of client states.
        run: The run folder; checkpoints in it, at any depth, may refer to these files.
        root: The folder of all runs, where a preempted job leaves a checkpoint.
    """

    def __init__(self, folder: Path, run: Path, root: Path) -> None:
        self.folder = folder
        self._run, self._root = run, root
        self._elsewhere: set[Path] = set()
        self._named: dict[Identity, frozenset[str]] = {}

    def saved(self, checkpoint: Path, in_use: Iterable[Path]) -> None:
        """Record which files a checkpoint that was just written refers to.

        Args:
            checkpoint: Its file.
            in_use: The files of client states that it refers to.
        """
        self._elsewhere.add(checkpoint.absolute())
        self._remember(_identity(checkpoint), frozenset(path.name for path in in_use))

    def remove_superseded(self, in_use: Iterable[Path]) -> list[Path]:
        """Remove files that nothing refers to; call it when a checkpoint is safely on disk.

        Nothing is removed if the machine fails to read a checkpoint. A corrupt checkpoint needs no
        files: no run can resume from it.

        Args:
            in_use: Files that the run is using.

        Returns:
            The removed files.
        """
        needed = {path.name for path in in_use}
        present = [path for path in self.folder.glob("*.safetensors") if path.name not in needed]
        if not present:
            return []
        try:
            for checkpoint in self._checkpoints():
                needed |= self._names_in(checkpoint)
        except (EnvironmentFailure, OSError):
            return []
        removed = [path for path in present if path.name not in needed]
        for path in removed:
            path.unlink(missing_ok=True)
        return removed

    def _checkpoints(self) -> set[Path]:
        near = {*self._run.rglob("*.ckpt"), *self._root.glob("*.ckpt")}
        return near | {path for path in self._elsewhere if path.exists()}

    def _names_in(self, checkpoint: Path) -> frozenset[str]:
        identity = _identity(checkpoint)
        names = self._named.pop(identity, None)
        return self._remember(identity, _names(checkpoint) if names is None else names)

    def _remember(self, identity: Identity, names: frozenset[str]) -> frozenset[str]:
        """Remember the files of a checkpoint; forget the least recently used one."""
        self._named[identity] = names
        while len(self._named) > _REMEMBERED:
            del self._named[next(iter(self._named))]
        return names


def _identity(path: Path) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _names(path: Path) -> frozenset[str]:
    try:
        files = loop_state(read_checkpoint(path))["extra"]["personal"]["files"]
    except (CheckpointError, KeyError, TypeError):
        return frozenset()
    return frozenset(Path(name).name for name in files)
