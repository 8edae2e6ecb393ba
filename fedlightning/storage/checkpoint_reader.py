"""The one reader of checkpoint files; a file that is damaged or not ours is refused in one line."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning.core.state import first_non_finite
from fedlightning.errors import CheckpointError, EnvironmentFailure
from fedlightning.storage.digest import CorruptFile, verify_digest
from fedlightning.storage.run_layout import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT

__all__ = [
    "FORMAT",
    "check_local",
    "check_network",
    "is_good",
    "load_plain_values",
    "loop_state",
    "read_checkpoint",
    "rounds_in",
]

FORMAT = 2
"""Number of the layout that this version writes; a newer one is refused, older ones are read."""

_OBJECT = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)")


def load_plain_values(file: Any, map_location: Any = "cpu") -> Any:
    """Return the tensors and plain values in an open file; nothing else is ever loaded."""
    with warnings.catch_warnings():  # torch says how it checks sparse tensors, which is as wanted
        warnings.filterwarnings("ignore", "Validating sparse tensor invariants")
        return torch.load(file, map_location=map_location, weights_only=True)


def read_checkpoint(
    path: str | os.PathLike[str], map_location: Any = "cpu", from_a_run: bool = True
) -> dict[str, Any]:
    """Return the content of a checkpoint file, if it is as a run wrote it.

    The digest is verified before anything in the file is interpreted. Only tensors and plain values
    are loaded.

    Args:
        path: The file.
        map_location: The device for tensors, as in ``torch.load``.
        from_a_run: Whether the content must be that of a run's checkpoint.

    Raises:
        CheckpointError: The file is missing, empty, corrupt, of another program, in a newer format,
            or its weights are not finite.
    """
    check_local(path)
    name = f"ckpt_path={os.fspath(path)!r}"
    if Path(path).is_dir():
        raise CheckpointError(f"{name} is a folder, not a checkpoint file.")
    try:
        with Path(path).open("rb") as file:
            sealed = verify_digest(file)
            checkpoint = load_plain_values(file, map_location)
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file; `last` finds the newest run's.") from None
    except OSError as error:
        raise EnvironmentFailure(f"cannot read {name}: {error.strerror or error}") from error
    except CorruptFile as damage:
        what = "is empty" if "empty" in str(damage) else "is corrupt, or not a checkpoint"
        raise CheckpointError(f"{name} {what}: {damage}.{_hint(Path(path))}") from None
    except Exception as error:  # unpickling a foreign archive may raise anything
        raise CheckpointError(f"{name}: {_cannot_load(error)}") from error
    if from_a_run and (fault := _fault(checkpoint)) is not None:
        raise CheckpointError(f"{name}: {fault}")
    if not sealed:
        raise CheckpointError(
            f"{name} carries no digest of its content: another program wrote or changed it, so it "
            "may be damaged. AtomicCheckpointIO().save_checkpoint(...) writes a file with a digest."
        )
    return dict(checkpoint)


def check_local(ckpt_path: Any) -> None:
    """Refuse a checkpoint that is not on this machine.

    Raises:
        CheckpointError: The path is a URL.

    Example:
        >>> check_local("s3://bucket/last.ckpt")
        Traceback (most recent call last):
        fedlightning.errors.CheckpointError: ckpt_path='s3://bucket/last.ckpt': remote paths are ...
    """
    text = "" if ckpt_path is None else str(ckpt_path)
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # a Path drops a slash; a drive is one letter
        raise CheckpointError(
            f"ckpt_path={text!r}: remote paths are not read; download the file and pass its path."
        )


def is_good(path: Path) -> bool:
    """Whether a file exists and is as it was written; faster than reading it."""
    try:
        with path.open("rb") as file:
            return verify_digest(file)
    except (OSError, CorruptFile):
        return False


def loop_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of the loop of rounds; empty if the checkpoint has only weights.

    Its entries are ``round``, which :func:`rounds_in` returns, and ``extra``: client states, server
    state, settings.

    Example:
        >>> loop_state({"loops": {"fit_loop": {"state_dict": {"round": 3}}}})
        {'round': 3}
        >>> loop_state({"state_dict": {}})
        {}
    """
    state: Mapping[str, Any] = checkpoint
    for name in ("loops", "fit_loop", "state_dict"):
        inner = state.get(name)
        if not isinstance(inner, Mapping):
            return {}
        state = inner
    return state


def rounds_in(checkpoint: Mapping[str, Any]) -> int:
    """Return the number of finished rounds, which is the index of the next one.

    Raises:
        KeyError: The checkpoint has only weights.
    """
    return int(loop_state(checkpoint)["round"])


def check_network(checkpoint: Mapping[str, Any], module: nn.Module) -> None:
    """Check that the weights are those of a module's network; name the first difference.

    Raises:
        CheckpointError: A key or a shape differs.

    Example:
        >>> check_network({"state_dict": {"weight": torch.ones(2, 3)}}, nn.Linear(3, 4, bias=False))
        Traceback (most recent call last):
        fedlightning.errors.CheckpointError: weight is (2, 3) in the checkpoint, vs (4, 3) in the...
    """
    saved, own = checkpoint["state_dict"], module.state_dict()
    for key, value in own.items():
        if key in saved and isinstance(value, Tensor) and saved[key].shape != value.shape:
            there, here = tuple(saved[key].shape), tuple(value.shape)
            raise CheckpointError(f"{key} is {there} in the checkpoint, vs {here} in the model.")
    for keys, where in ((own.keys() - saved.keys(), "model"), (saved.keys() - own.keys(), "file")):
        if keys:
            named = ", ".join(sorted(keys)[:3])
            raise CheckpointError(f"it is of another network: only the {where} has {named}.")


def _fault(checkpoint: Any) -> str | None:
    """Return what is wrong with the content of a file that was loaded, if anything."""
    ours = checkpoint.get("fedlightning") if isinstance(checkpoint, Mapping) else None
    number = ours.get("format") if isinstance(ours, Mapping) else None
    if isinstance(number, int) and number > FORMAT:
        return f"format {number} > supported {FORMAT}; upgrade fedlightning to read it."
    if number not in range(1, FORMAT + 1) or not isinstance(checkpoint.get("state_dict"), Mapping):
        stock = isinstance(checkpoint, Mapping) and "pytorch-lightning_version" in checkpoint
        writer = "Lightning's own Trainer" if stock else "no run"
        verb = "wrote it" if stock else "wrote it, though it may be a model's state_dict"
        return f"not a fedlightning checkpoint: {writer} {verb}."
    tensors = {k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, Tensor)}
    if (key := first_non_finite(tensors)) is not None:
        return f"non-finite values in {key}: the model was broken when it was saved."
    return None


def _cannot_load(error: Exception) -> str:
    if found := _OBJECT.search(str(error)):
        return (
            f"it holds an object of {found[1]}; only tensors and plain values are loaded. If you "
            "trust the file, AtomicCheckpointIO().save_checkpoint(torch.load(path, "
            "weights_only=False), new_path) writes its hyperparameters as plain values."
        )
    first = " ".join(str(error).split()).partition(". ")[0]
    return f"it cannot be read as a checkpoint ({type(error).__name__}: {first[:200]})."


def _hint(path: Path) -> str:
    other = path.with_name(PREVIOUS_CHECKPOINT)
    return f" {other} is whole." if path.name == LAST_CHECKPOINT and is_good(other) else ""
