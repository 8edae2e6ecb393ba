"""Which file ``--ckpt_path`` means, and how it is loaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedlightning.storage import LAST, PREVIOUS, good_checkpoint, latest_checkpoint
from fedlightning.errors import CheckpointError, ConfigError

__all__ = ["find_checkpoint", "plain_values_only"]


def find_checkpoint(given: str | os.PathLike[str] | None, command: str, root: Path) -> str | None:
    """Return the checkpoint to load, ``None`` to train from the start.

    Args:
        given: A file, a run folder, ``last`` (the newest run's) or ``hpc`` (Lightning's own for a
            requeued job).
        command: What is to be done with it.
        root: The folder that holds ``lightning_logs``.

    Raises:
        ConfigError: A command that needs a trained model gets none.
        CheckpointError: There is no such file.
    """
    if given in (None, ""):
        if command == "fit":
            return None
        raise ConfigError(
            f"{command} needs a trained model: give --ckpt_path FILE, or --ckpt_path last for the "
            "newest run's."
        )
    if given == "hpc":
        return "hpc"
    if given == "last":
        return str(latest_checkpoint(root))
    path = Path(os.fspath(given))
    if given == "best" and not path.exists():
        raise ConfigError(
            "ckpt_path='best' is known only while a run lasts: give the file's path, or 'last'."
        )
    if path.is_dir():
        for folder in (path / "checkpoints", path):
            if any((folder / name).is_file() for name in (LAST, PREVIOUS)):
                return str(good_checkpoint(folder))
        raise CheckpointError(
            f"ckpt_path={str(path)!r} is a folder with no checkpoint in it: neither "
            "checkpoints/last.ckpt nor last.ckpt."
        )
    if not path.is_file():
        raise CheckpointError(
            f"ckpt_path={str(path)!r}: there is no such file; `last` finds the newest run's."
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"ckpt_path={str(path)!r} is empty: its writing was cut short.")
    return str(path)


def plain_values_only(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the argument that keeps a checkpoint from running code, where Lightning has it.

    Args:
        method: ``fit``, ``validate``, ``test`` or ``predict`` of Lightning's Trainer.
    """
    return {"weights_only": True} if "weights_only" in inspect.signature(method).parameters else {}
