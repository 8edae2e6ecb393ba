"""What a client keeps, at its node: on disk, in versions, so that a round can be run again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from fedlightning.core.state import State
from fedlightning.deployment.messages import Receipt
from fedlightning.errors import CheckpointError
from fedlightning.storage.client_files import read_state, write_state
from fedlightning.storage.files import os_errors_as_failures, remove_stale_files, sync_folder

__all__ = ["NodeStore"]

_KEPT = "kept"
_NAME = re.compile(r"(\d+)-(\d+)\.safetensors")


class NodeStore:
    """The states of one client, by the update that left them.

    An update starts from the state that the server names, never from the newest: a node that was
    killed before its answer arrived, or a server that runs a round again, has the update made
    twice, and the second time must start where the first one did. So there are two versions, the
    one that is part of the global model's history and the one under way, and a third while the
    server could still fall back to its last checkpoint.

    Args:
        folder: Folder of this client alone.
        client: Client id.

    Example:
        >>> import torch
        >>> store = NodeStore(getfixture("tmp_path"), client=3)
        >>> for stream in (0, 1, 2):
        ...     store.save(Receipt(run=7, stream=stream), {"head": torch.full((1,), stream)})
        >>> store.keep_only(run=7, streams={1, 2})
        >>> store.streams(run=7), store.load(Receipt(run=7, stream=1))
        ([1, 2], {'head': tensor([1])})
    """

    def __init__(self, folder: Path, client: int) -> None:
        self.folder = Path(folder)
        self.client = client

    def load(self, receipt: Receipt | None) -> State:
        """Return the state that an update has left; an empty one for ``None``.

        Raises:
            CheckpointError: It is not here: the folder was cleared, or is another run's.
        """
        if receipt is None:
            return {}
        path = self._path(receipt)
        if not path.exists():
            have = ", ".join(map(str, self.streams(receipt.run))) or "none"
            raise CheckpointError(
                f"{path} is missing: the server asks for what client {self.client} kept after its "
                f"update {receipt.stream}, and the store has {have} of this run. Put the store's "
                "folder back, or begin a new run."
            )
        return read_state(path, self.client)

    def save(self, receipt: Receipt, state: State) -> None:
        """Write the state that an update leaves; flushed to the disk when this returns.

        Raises:
            EnvironmentFailure: It cannot be written.
        """
        remove_stale_files(self.folder / _KEPT)
        write_state(self._path(receipt), self.client, state)
        sync_folder(self.folder / _KEPT)

    def keep_only(self, run: int, streams: set[int]) -> None:
        """Remove all other states, those of other runs included."""
        for path in self._files():
            found = _NAME.fullmatch(path.name)
            if found and (int(found[1]) != run or int(found[2]) not in streams):
                with os_errors_as_failures("remove", path), contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def streams(self, run: int) -> list[int]:
        """Return the updates of a run whose states are here, in ascending order."""
        found = (_NAME.fullmatch(path.name) for path in self._files())
        return sorted(int(match[2]) for match in found if match and int(match[1]) == run)

    def states(self, run: int) -> Iterator[State]:
        """Yield all states of a run that are here."""
        return (
            read_state(self._path(Receipt(run, stream)), self.client)
            for stream in self.streams(run)
        )

    def _files(self) -> list[Path]:
        folder = self.folder / _KEPT
        return list(folder.iterdir()) if folder.is_dir() else []

    def _path(self, receipt: Receipt) -> Path:
        return self.folder / _KEPT / f"{receipt.run}-{receipt.stream}.safetensors"
