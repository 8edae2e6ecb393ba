"""Removing what clients had kept in rounds that no checkpoint goes back to any more."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fedlightning.errors import CheckpointError, EnvironmentFailure
from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint

__all__ = ["PersonalFiles"]

Identity = tuple[int, int, int, int]
_REMEMBERED = 8  # lists of names; each round leaves another checkpoint under the same name


class PersonalFiles:
    """The files of a run's folder ``personal``, and the checkpoints that need them.

    Files are named by their content and never change, so a file that no checkpoint names, and the
    run does not have in use, is of no use to anybody. Checkpoints that this process has not written
    are read, as a rule once each.

    Args:
        folder: The folder ``personal``.
        run: The run's folder; checkpoints in it, however deep, may name these files.
        root: The folder of all runs, where a preempted job leaves a checkpoint.
    """

    def __init__(self, folder: Path, run: Path, root: Path) -> None:
        self.folder = folder
        self._run, self._root = run, root
        self._elsewhere: set[Path] = set()
        self._named: dict[Identity, frozenset[str]] = {}

    def saved(self, checkpoint: Path, in_use: Iterable[Path]) -> None:
        """Remember what a checkpoint that was just written names.

        Args:
            checkpoint: Its file.
            in_use: The files that it names.
        """
        self._elsewhere.add(checkpoint.absolute())
        self._remember(_identity(checkpoint), frozenset(path.name for path in in_use))

    def remove_superseded(self, in_use: Iterable[Path]) -> list[Path]:
        """Remove files that nothing needs; call it when a checkpoint is safely on the disk.

        Nothing is removed where a checkpoint cannot be read for a reason of the machine's. One that
        is not whole needs nothing: nobody can go on from it.

        Args:
            in_use: Files that the run has in use.

        Returns:
            What was removed.
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
        """Remember what a checkpoint names; forget the one that was asked for longest ago."""
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
