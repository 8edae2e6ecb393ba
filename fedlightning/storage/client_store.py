"""Client states: what clients keep from round to round."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlightning.core.state import State
from fedlightning.errors import CheckpointError
from fedlightning.storage.client_files import adopt, read_state, write_states
from fedlightning.storage.files import sync_folder

__all__ = ["ClientStore", "holds_states"]

FORMAT = 2
"""Number of the layout that :meth:`ClientStore.state_dict` returns; 1, which had no number, had one
tensor per key, of all clients."""


class ClientStore:
    """The states of clients, by client and key; only clients that have trained have one.

    Clients may keep different keys, and tensors of different shape and dtype under the same key.
    States stay in memory as long as they fit. Once they take more than ``max_bytes``, all of them
    go to files (see :mod:`fedlightning.storage.client_files`), and a round reads and writes those
    of its cohort. The store never changes or removes a file: an older checkpoint may need it. Files
    inherited from the parent run are hard-linked into this run's folder, so either run can delete
    its copy.

    Args:
        folder: Returns the folder for the files, called when the first one is written; None keeps
            everything in memory.
        max_bytes: The memory that states may take.

    Example:
        >>> store = ClientStore()
        >>> store.update({3: {"head.weight": torch.ones(2)}, 5: {"steps": torch.tensor(7)}})
        >>> store.get(3), store.get(5), store.get(4), len(store)
        ({'head.weight': tensor([1., 1.])}, {'steps': tensor(7)}, None, 2)
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
        """Return a client's state, or ``None`` if it never trained.

        Raises:
            CheckpointError: The file that holds it is missing or corrupt.
        """
        if client in self._files:
            return read_state(self._files[client], client)
        return self._states.get(client)

    def update(self, states: Mapping[int, State]) -> None:
        """Replace the states of some clients; tensors that stay in memory are not copied.

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
        """The files that hold the states; empty while all states are in memory."""
        return set(self._files.values())

    def _adopt(self, folder: Path) -> None:
        """Link the files of another run's folder into this run's."""
        foreign = {path for path in self.files if path.parent != folder}
        if not foreign:
            return
        own = {path: adopt(path, folder) for path in foreign}
        sync_folder(folder)
        self._files = {client: own.get(path, path) for client, path in self._files.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all states, or the names of the files that hold them.

        Returns:
            ``clients``, those in memory; ``tensors``, a list of (clients, stacked tensor) for each
            key, because few large tensors save and load far faster than many small ones; ``files``,
            the clients in each file.
        """
        files: dict[str, list[int]] = {}
        for client, path in self._files.items():
            files.setdefault(str(path), []).append(client)
        clients = sorted(self._states)
        return {
            "format": FORMAT,
            "clients": clients,
            "tensors": _stack(self._states, clients),
            "files": files,
        }

    def load_state_dict(self, state: Mapping[str, Any], moved_to: Path | None = None) -> None:
        """Restore what :meth:`state_dict` returned, in this format or an older one.

        Args:
            state: What it returned.
            moved_to: The folder to search for files whose own folder is missing.

        Raises:
            CheckpointError: The folder with the files is missing, or the format is a newer one.
        """
        if (number := state.get("format", 1)) > FORMAT:
            raise CheckpointError(
                f"client states: format {number} > supported {FORMAT}; upgrade fedlightning to "
                "read them."
            )
        tensors = state["tensors"]
        if number == 1:
            tensors = {key: [(state["clients"], stacked)] for key, stacked in tensors.items()}
        self._states = _unstack(state["clients"], tensors)
        self._bytes = sum(map(_size, self._states.values()))
        self._files = {}
        folders: dict[Path, Path] = {}
        for name, clients in state.get("files", {}).items():
            path = Path(name)
            if path.parent not in folders:
                folders[path.parent] = _existing(path.parent, moved_to)
            self._files |= dict.fromkeys(clients, folders[path.parent] / path.name)


def holds_states(state: Mapping[str, Any]) -> bool:
    """Whether what :meth:`ClientStore.state_dict` returned has a state of any client.

    Example:
        >>> holds_states(ClientStore().state_dict())
        False
    """
    return bool(state["clients"] or state.get("files"))


Stacks = dict[str, list[tuple[list[int], Tensor]]]


def _stack(states: Mapping[int, State], clients: list[int]) -> Stacks:
    """Stack, key by key, the tensors of all clients that agree in shape and dtype.

    Example:
        >>> _stack({1: {"a": torch.ones(2)}, 2: {"a": torch.zeros(2)}}, [1, 2])
        {'a': [([1, 2], tensor([[1., 1.],
                [0., 0.]]))]}
    """
    by_keys: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for client in clients:
        by_keys[tuple(states[client])].append(client)
    members: dict[str, list[int]] = defaultdict(list)
    for keys, those in by_keys.items():
        for key in keys:
            members[key] += those
    once = {tuple(clients): clients}  # equal lists are one object, which a file holds once
    return {
        key: [
            (once.setdefault(tuple(alike), alike), stacked)
            for alike, stacked in _stack_alike(those, [states[client][key] for client in those])
        ]
        for key, those in members.items()
    }


def _stack_alike(clients: list[int], values: list[Tensor]) -> list[tuple[list[int], Tensor]]:
    if len(set(map(attrgetter("dtype"), values))) == 1:  # torch.stack would convert others
        with contextlib.suppress(RuntimeError):  # faster than comparing all shapes first
            return [(clients, torch.stack(values))]
    groups: dict[tuple[torch.Size, torch.dtype], list[tuple[int, Tensor]]] = defaultdict(list)
    for client, value in zip(clients, values, strict=True):
        groups[value.shape, value.dtype].append((client, value))
    return [
        ([client for client, _ in group], torch.stack([value for _, value in group]))
        for group in groups.values()
    ]


def _unstack(clients: Iterable[int], stacks: Stacks) -> dict[int, State]:
    states: dict[int, State] = {client: {} for client in clients}
    for key, groups in stacks.items():
        for members, stacked in groups:
            for client, value in zip(members, stacked.unbind(), strict=True):
                states[client][key] = value.clone()
    return states


def _size(state: State) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())


def _existing(folder: Path, moved_to: Path | None) -> Path:
    for candidate in filter(None, (folder, moved_to)):
        if candidate.is_dir():
            return candidate
    raise CheckpointError(
        f"the client states are in {folder}, which is missing"
        + (f", and so is {moved_to}" if moved_to is not None else "")
        + ". Put the folder back, or start again without ckpt_path."
    )
