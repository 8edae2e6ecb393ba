"""Reading personal models: what is not whole, or does not go together, is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlightning.core.state import State, first_non_finite
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.personalization.models.writer import FORMAT, About, file_name
from fedlightning.storage.run_layout import PERSONAL_INDEX, PERSONAL_MODELS
from fedlightning.storage.tensor_files import metadata_of

__all__ = ["PersonalIndex", "read_index", "read_personal"]


@dataclass(frozen=True)
class PersonalIndex:
    """What ``index.json`` says.

    Args:
        folder: The folder that it lies in.
        about: What all files have in common.
        digests: SHA-256 of each client's file, in hexadecimal.
    """

    folder: Path
    about: About
    digests: dict[int, str]


def read_index(run: str | os.PathLike[str]) -> PersonalIndex:
    """Return what a run's ``personalized/index.json`` says.

    Args:
        run: The run folder.

    Raises:
        CheckpointError: It is missing, damaged, or in a newer format.
    """
    path = Path(run) / PERSONAL_MODELS / PERSONAL_INDEX
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}: no personal models are saved there. `personalize` "
            "makes them from a checkpoint."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON.") from error
    number = content.get("format") if isinstance(content, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(
            f"{path}: format {number} > supported {FORMAT}; upgrade fedlightning to read it."
        )
    try:
        return PersonalIndex(path.parent, _about(content), _digests(content["clients"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def read_personal(index: PersonalIndex, client: int) -> State:
    """Return what a client does not share with the global model.

    Its digest is compared before anything in the file is interpreted.

    Args:
        index: What the run's index says.
        client: The client.

    Raises:
        ConfigError: The client was not personalised.
        CheckpointError: Its file is missing or damaged, goes with another global model than the
            index says, or holds values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = index.folder / file_name(client)
    if client not in index.digests:
        raise ConfigError(
            f"client {client} has no personal model in {index.folder}: it has those of "
            f"{_shown(index.digests)}. `personalize` makes others from a checkpoint."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != index.digests[client]:
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written.")
    try:
        state, header = load(content), metadata_of(content)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    own = (header.get("client"), header.get("global_sha256"))
    if own != (str(client), index.about.global_sha256):
        raise CheckpointError(f"{path} is of another client, or goes with another global model.")
    if (key := first_non_finite(state)) is not None:
        raise CheckpointError(f"{path}: non-finite values in {key}: fine-tuning has diverged.")
    return state


def _about(content: dict[str, Any]) -> About:
    shape, dtype, checkpoint = (
        content[name] for name in ("input_shape", "input_dtype", "checkpoint")
    )
    return About(
        round=int(content["round"]),
        part=content["part"],
        global_sha256=str(content["global_sha256"]),
        checkpoint=None if checkpoint is None else str(checkpoint),
        input_shape=None if shape is None else tuple(int(size) for size in shape),
        input_dtype=None if dtype is None else str(dtype),
    )


def _digests(clients: dict[str, str]) -> dict[int, str]:
    return {int(client): str(digest) for client, digest in clients.items()}


def _shown(clients: dict[int, str]) -> str:
    if not clients:
        return "no client"
    if len(clients) <= 10:
        return f"{', '.join(map(str, clients))}"
    return f"{len(clients):,} clients, {min(clients)} to {max(clients)}"
