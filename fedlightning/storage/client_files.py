"""Client states in files: the states of a cohort are one file, which never changes.

A file is in the safetensors format. A tensor's name is ``client/key``, so clients may keep
different keys, shapes and dtypes. The metadata has a CRC-32 per client, because training would not
notice a flipped bit. The file's name is a digest of its content, so a round that runs again writes
the same file, and so do several workers.

One file per client would be simpler, but each file that must survive a power failure costs an
``fsync`` of some milliseconds, and a million files cost a million inodes.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch

from fedlightning.core.state import State
from fedlightning.errors import CheckpointError
from fedlightning.storage.files import os_errors_as_failures, sync_folder, write_atomically
from fedlightning.storage.tensor_files import serialize

__all__ = ["adopt", "read_state", "write_state", "write_states"]

_CLIENTS_PER_FILE = 256


def write_states(folder: Path, states: Mapping[int, State]) -> dict[int, Path]:
    """Write the states of some clients, a few hundred per file.

    Args:
        folder: The folder; it is created if missing.
        states: State by client id, tensors on the CPU.

    Returns:
        The file of each client.

    Raises:
        EnvironmentFailure: A file cannot be written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> files = write_states(folder, {7: {"bias": torch.ones(2)}, 9: {"bias": torch.zeros(2)}})
        >>> read_state(files[9], 9)
        {'bias': tensor([0., 0.])}
    """
    clients = iter(states)
    files: dict[int, Path] = {}
    while chosen := list(islice(clients, _CLIENTS_PER_FILE)):
        path = _write(folder, {client: states[client] for client in chosen})
        files |= dict.fromkeys(chosen, path)
    return files


def write_state(path: Path, client: int, state: State) -> None:
    """Write one client's state into a file of a given name.

    Args:
        path: The file.
        client: Client id.
        state: Its state, tensors on the CPU.

    Raises:
        EnvironmentFailure: The file cannot be written.
    """
    write_atomically(path, _content({client: state}))


def read_state(path: Path, client: int) -> State:
    """Return one client's state; the others in the file are not read.

    Raises:
        CheckpointError: The file is missing or damaged, or has no state of this client.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{client}/")]  # noqa: SIM118
            state = {name.partition("/")[2]: file.get_tensor(name) for name in names}
            sums = json.loads((file.metadata() or {}).get("crc32", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{_state_in(client, path)} cannot be read: {error}") from error
    if _checksum(state) != sums.get(str(client)):
        raise CheckpointError(f"{_state_in(client, path)} is damaged: its checksum differs.")
    return state


def adopt(path: Path, folder: Path) -> Path:
    """Hard-link a file into another folder, or copy it where that is impossible.

    Returns:
        Its path there; the present path if it cannot be read, which its next reader will report.
    """
    target = folder / path.name
    with os_errors_as_failures("write", target):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileExistsError:
            pass
        except OSError:  # another filesystem, or one without hard links
            if not os.access(path, os.R_OK):
                return path
            write_atomically(target, path.read_bytes())
    return target


def _write(folder: Path, states: Mapping[int, State]) -> Path:
    content = _content(states)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    if not path.exists() or path.stat().st_size != len(content):
        write_atomically(path, content)
        for place in (
            folder,
            folder.parent,
        ):  # a checkpoint may soon refer to the file
            sync_folder(place)
    return path


def _content(states: Mapping[int, State]) -> bytes:
    tensors = {
        f"{client}/{key}": value for client, state in states.items() for key, value in state.items()
    }
    sums = {client: _checksum(state) for client, state in states.items()}
    return serialize(tensors, {"crc32": json.dumps(sums)})


def _checksum(state: State) -> int:
    """Return a CRC-32 of keys and values, independent of the order of the keys."""
    value = 0
    for key in sorted(state):
        value = zlib.crc32(key.encode(), value)
        flat = state[key].contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(flat.numpy().data, value)
    return value


def _state_in(client: int, path: Path) -> str:
    return f"the state of client {client} in {path}"
