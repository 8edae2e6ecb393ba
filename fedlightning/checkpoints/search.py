"""Which checkpoint a run goes on from: its newest one, or the one before if that is bad."""

from __future__ import annotations

import os
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.storage.checkpoint_io import LAST, PREVIOUS
from fedlightning.storage.checkpoint_reader import is_good, read_checkpoint, rounds_in
from fedlightning.errors import CheckpointError

__all__ = ["good_checkpoint", "latest_checkpoint"]

_FOLDERS = ("*/*/checkpoints", "*/checkpoints", "checkpoints")


def latest_checkpoint(root: str | os.PathLike[str]) -> Path:
    """Return the checkpoint that the newest run under a folder goes on from.

    Raises:
        CheckpointError: If there is none.
    """
    patterns = [f"{folder}/{name}" for folder in _FOLDERS for name in (LAST, PREVIOUS)]
    found = [file for pattern in patterns for file in Path(root).glob(pattern)]
    if not found:
        raise CheckpointError(
            f"ckpt_path='last': no lightning_logs/version_*/checkpoints/last.ckpt under {root}; "
            "give a path, or leave ckpt_path out to start anew."
        )
    return good_checkpoint(max(found, key=lambda file: file.stat().st_mtime_ns).parent)


def good_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """Return a folder's newest checkpoint that is whole, and warn if a newer one is not.

    Args:
        folder: The folder with ``last.ckpt`` and ``previous.ckpt``.

    Returns:
        ``last.ckpt`` if neither is there and whole; reading it raises an error that says why.
    """
    last, previous = Path(folder) / LAST, Path(folder) / PREVIOUS
    if is_good(last) or not is_good(previous):
        return last  # whoever reads it says what is wrong with it
    round_ = rounds_in(read_checkpoint(previous)) - 1
    what = "corrupt" if last.exists() else "missing"
    rank_zero_warn(f"{last} is {what}: using round {round_}, from {previous.name} beside it.")
    return previous
