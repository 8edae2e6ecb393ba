"""Personal models as files: ``personalized/`` in the run folder, one small file for each client.

A file holds what a client does not share with the global model: the part that was fine-tuned, and
what the client has kept. It is in the safetensors format, its metadata say which global model it
goes with, and its bytes are a function of what it holds. ``index.json`` has the digests of all
files. The folder is filled under another name and then takes its own, so that a reader finds one
personalization or another, never some files of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedlightning._version import __version__
from fedlightning.core.state import State
from fedlightning.engine.workers.collectives import Workers
from fedlightning.storage.files import (
    os_errors_as_failures,
    sync_folder,
    temporary_beside,
    write_atomically,
)
from fedlightning.storage.run_layout import (
    NEW_PERSONAL_MODELS,
    OLD_PERSONAL_MODELS,
    PERSONAL_INDEX,
    PERSONAL_MODELS,
    remove_unfinished,
)
from fedlightning.storage.tensor_files import serialize

__all__ = ["FORMAT", "PREDICTOR", "About", "PersonalWriter", "file_name", "state_digest"]

PREDICTOR = "predictor/"
"""What the names begin with, in a client's file, of what its predictor has beside the network."""

FORMAT = 1
"""Number of the layout that this version writes; a newer one is refused."""


@dataclass(frozen=True)
class About:
    """What all files of one personalization have in common.

    Args:
        round: The last round that the global model has behind it; -1 if none.
        part: What was fine-tuned.
        global_sha256: Digest of the global model, see :func:`state_digest`.
        checkpoint: The checkpoint that the global model came from, seen from the run folder; None
            where the run itself has trained it.
        input_shape: Shape of one input of the model, where that is one tensor.
        input_dtype: Its dtype, such as ``float32``.
    """

    round: int
    part: str
    global_sha256: str
    checkpoint: str | None = None
    input_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None


def state_digest(state: State) -> str:
    """Return a SHA-256 of keys, dtypes, shapes and values, independent of their order and layout.

    Args:
        state: Tensors by key.

    Example:
        >>> one = {"weight": torch.ones(2, 3), "steps": torch.tensor(4)}
        >>> state_digest(one) == state_digest(dict(reversed(one.items())))
        True
        >>> state_digest(one) == state_digest({**one, "steps": torch.tensor(5)})
        False
    """
    content = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        content.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


class PersonalWriter:
    """Writes the files of one personalization; several workers write each their own clients'.

    The files are not flushed to the disk one by one, which would cost milliseconds each: after a
    power failure one of them may be cut short, and then its digest says so.

    Args:
        run: The run folder.
        about: What the files have in common.
        workers: The processes that share the work; all of them call :meth:`open` and
            :meth:`publish`.
        names: The clients' names, for the index; None where they have none.

    Example:
        >>> run = getfixture("tmp_path")
        >>> writer = PersonalWriter(run, About(round=3, part="head", global_sha256="ab"))
        >>> writer.open()
        >>> writer.keep(7, {"head.bias": torch.ones(2)})
        >>> writer.publish()
        >>> sorted(path.name for path in (run / "personalized").iterdir())
        ['client_00007.safetensors', 'index.json']
    """

    def __init__(
        self,
        run: Path,
        about: About,
        workers: Workers | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._run = run
        self._names = names
        self._about = about
        self._workers = workers if workers is not None else Workers()
        self._digests: dict[int, str] = {}

    def open(self) -> None:
        """Make the folder to be filled, empty.

        Raises:
            EnvironmentFailure: It cannot be made.
        """
        failure = None
        if self._workers.rank == 0:
            try:
                remove_unfinished(self._run)
                with os_errors_as_failures("create", self._run / NEW_PERSONAL_MODELS):
                    (self._run / NEW_PERSONAL_MODELS).mkdir(parents=True)
            except Exception as error:
                failure = error
        self._workers.agree(failure)

    def keep(self, client: int, state: State) -> None:
        """Write a client's file.

        Args:
            client: The client.
            state: What it does not share with the global model.

        Raises:
            EnvironmentFailure: It cannot be written.
        """
        about = self._about
        content = serialize(
            state,
            {
                "format": str(FORMAT),
                "fedlightning": __version__,
                "client": str(client),
                "round": str(about.round),
                "part": about.part,
                "global_sha256": about.global_sha256,
            },
        )
        path = self._run / NEW_PERSONAL_MODELS / file_name(client)
        with os_errors_as_failures("write", path), temporary_beside(path) as temporary:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        self._digests[client] = hashlib.sha256(content).hexdigest()

    def publish(self) -> None:
        """Write the index, and put the folder in the place of a former one.

        Raises:
            EnvironmentFailure: It cannot be done; what was there before is untouched.
        """
        digests = {
            client: digest
            for part in self._workers.gather(self._digests)
            for client, digest in part.items()
        }
        failure = None
        if self._workers.rank == 0:
            try:
                self._publish(digests)
            except Exception as error:
                failure = error
        self._workers.agree(failure)

    def discard(self) -> None:
        """Remove what was written so far."""
        if self._workers.rank == 0:
            shutil.rmtree(self._run / NEW_PERSONAL_MODELS, ignore_errors=True)

    def _publish(self, digests: dict[int, str]) -> None:
        index: dict[str, Any] = {
            "format": FORMAT,
            "fedlightning": __version__,
            **asdict(self._about),
            "clients": {str(client): digests[client] for client in sorted(digests)},
        }
        if self._names is not None:
            index["names"] = {str(client): self._names[client] for client in sorted(digests)}
        new, own = self._run / NEW_PERSONAL_MODELS, self._run / PERSONAL_MODELS
        old = self._run / OLD_PERSONAL_MODELS
        write_atomically(new / PERSONAL_INDEX, (json.dumps(index, indent=1) + "\n").encode())
        with os_errors_as_failures("write", own):
            if own.exists():
                os.replace(own, old)
            os.replace(new, own)
        sync_folder(self._run)
        shutil.rmtree(old, ignore_errors=True)


def file_name(client: int) -> str:
    """Return the name of a client's file."""
    return f"client_{client:05d}.safetensors"
