"""What clients keep from round to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fedlightning.core.state import State
from fedlightning.errors import CheckpointError
from fedlightning.storage.client_files import adopt, read_state, write_states
from fedlightning.storage.files import sync_folder

__all__ = ["ClientStore"]


class ClientStore:
    """Personal states, in memory as long as they fit; only clients that were chosen have one.

    Once they take more than ``max_bytes``, all of them go to files (see
    :mod:`fedlightning.storage.client_files`), and a round reads and writes those of its cohort.
    Files are never changed here, nor removed: an older checkpoint may need them. Those of the run
    that this one has branched off from get a second name in this run's folder, so that each run can
    do with its own as it likes.

    Args:
        folder: Returns the folder for the files, which is asked for when the first one is written;
            None keeps everything in memory.
        max_bytes: How much may be in memory.

    Example:
        >>> states = ClientStore()
        >>> states.update({3: {"head.weight": torch.ones(2)}})
        >>> states.get(3)["head.weight"], states.get(4) is None, len(states)
        (tensor([1., 1.]), True, 1)
    """

    def __init__(
        self, folder: Callable[[], Path] | None = None, max_bytes: float = float("inf")
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._states: dict[int, State] = {}
        self._bytes = 0
        self._files: dict[int, Path] = {}

    def __len__(self) -> int:
        return len(self._states) + len(self._files)

    def __iter__(self) -> Iterator[int]:
        yield from self._states
        yield from self._files

    def get(self, client: int) -> State | None:
        """Return what a client has kept, or ``None`` if it never trained.

        Raises:
            CheckpointError: The file that holds it is gone or damaged.
        """
        if client in self._files:
            return read_state(self._files[client], client)
        return self._states.get(client)

    def update(self, states: Mapping[int, State]) -> None:
        """Keep the states of some clients; those that stay in memory are not copied.

        Raises:
            EnvironmentFailure: A file cannot be written.
        """
        if not self._files:
            for client, state in states.items():
                self._bytes += _size(state) - _size(self._states.get(client, {}))
                self._states[client] = state
            if self._bytes <= self._max_bytes or self._folder is None:
                return
            states = self._states
        if states:
            assert self._folder is not None
            self._adopt(self._folder())
            self._files.update(write_states(self._folder(), states))
            self._states, self._bytes = {}, 0

    @property
    def files(self) -> set[Path]:
        """The files that hold the states; none while all are in memory."""
        return set(self._files.values())

    def _adopt(self, folder: Path) -> None:
        """Have all files in this run's own folder."""
        foreign = {path for path in self.files if path.parent != folder}
        if not foreign:
            return
        own = {path: adopt(path, folder) for path in foreign}
        sync_folder(folder)
        self._files = {client: own.get(path, path) for client, path in self._files.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all states, or the names of the files that hold them.

        States are stacked, because one tensor per key saves and loads far faster.
        """
        clients = sorted(self._states)
        keys = list(self._states[clients[0]]) if clients else []
        files: dict[str, list[int]] = {}
        for client, path in self._files.items():
            files.setdefault(str(path), []).append(client)
        return {
            "clients": clients,
            "tensors": {key: torch.stack([self._states[c][key] for c in clients]) for key in keys},
            "files": files,
        }

    def load_state_dict(self, state: dict[str, Any], moved_to: Path | None = None) -> None:
        """Take back what :meth:`state_dict` gave.

        Args:
            state: What it gave.
            moved_to: Where files are looked for whose folder is no more.

        Raises:
            CheckpointError: The folder with the files is gone.
        """
        self._states = {
            client: {key: stacked[row].clone() for key, stacked in state["tensors"].items()}
            for row, client in enumerate(state["clients"])
        }
        self._bytes = sum(map(_size, self._states.values()))
        self._files = {}
        folders: dict[Path, Path] = {}
        for name, clients in state.get("files", {}).items():
            path = Path(name)
            if path.parent not in folders:
                folders[path.parent] = _present(path.parent, moved_to)
            self._files |= dict.fromkeys(clients, folders[path.parent] / path.name)


def _size(state: State) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())


def _present(folder: Path, moved_to: Path | None) -> Path:
    for candidate in filter(None, (folder, moved_to)):
        if candidate.is_dir():
            return candidate
    raise CheckpointError(
        f"the parts that clients keep lie in {folder}, which is gone"
        + (f", and there is no {moved_to} either" if moved_to is not None else "")
        + ". Put the folder back, or start anew without ckpt_path."
    )
