"""`AtomicCheckpointIO`: a checkpoint file is complete, or it does not exist."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning._version import __version__
from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.storage.checkpoint_reader import (
    FORMAT,
    is_good,
    load_plain_values,
    read_checkpoint,
    rounds_in,
)
from fedlightning.storage.digest import append_digest
from fedlightning.storage.files import reason, sync_folder, temporary_beside
from fedlightning.storage.plain_values import plain_checkpoint
from fedlightning.storage.run_layout import CHECKPOINTS, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT

__all__ = [
    "AtomicCheckpointIO",
    "checkpoint_at",
    "good_checkpoint",
    "has_checkpoint",
    "latest_checkpoint",
]

_HANDED_OVER = ".temp.ckpt"  # bare weights: how Lightning's launchers return a worker's result


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically, and loads a file only if it is as it was written.

    A file is written under a temporary name in the same folder, flushed to disk, and renamed. It
    has a digest of its content, which is verified before anything in it is interpreted. When
    ``last.ckpt`` is replaced, its predecessor stays as ``previous.ckpt``. The format is
    Lightning's: ``torch.load(path, weights_only=True)`` and ``Module.load_from_checkpoint(path)``
    read it. Hyperparameters are written as plain values: a NumPy number as Python's, a path as a
    string, an enum by name, a config or a dataclass as a dict, a function or a module as a text.

    :class:`~fedlightning.FederatedTrainer` uses it by default; another CheckpointIO among its
    ``plugins`` replaces it.

    Example:
        >>> path = getfixture("tmp_path") / "some.ckpt"
        >>> checkpoint = {"state_dict": {"weight": torch.ones(2)}}
        >>> AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        >>> AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
        {'weight': tensor([1., 1.])}
    """

    def __init__(self) -> None:
        self._rounds: dict[Path, int | None] = {}  # rounds in each last.ckpt; None if it is corrupt
        self._tried = False

    # -- writing -------------------------------------------------------------------------------

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: The content.
            path: The file, in a local folder; missing folders are created.
            storage_options: Not used for local files.

        Raises:
            ConfigError: The path is a URL.
            EnvironmentFailure: It cannot be written. Existing files are untouched, no partial file
                is left, and the error says which round is safe.
        """
        if "://" in os.fspath(path):
            raise ConfigError(
                f"checkpoint path {os.fspath(path)!r} is a URL, and only local files are written "
                "atomically; mount it, or pass plugins=[TorchCheckpointIO()]."
            )
        target = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint if target.name == _HANDED_OVER else _marked(checkpoint), buffer)
        self._try_to_load(buffer, target)
        archive = bytearray(buffer.getbuffer())
        del buffer
        append_digest(archive)
        try:
            self._replace(target, archive, _round_or_none(checkpoint))
        except OSError as error:
            raise EnvironmentFailure(_cannot_write(target, error)) from error

    def _replace(self, target: Path, content: bytearray, round_: int | None) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        keep_previous = target.name == LAST_CHECKPOINT and self._has_other_round(target, round_)
        with temporary_beside(target) as temporary:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep_previous:
                _keep_as_previous(target)
            os.replace(temporary, target)
        sync_folder(target.parent)
        if target.name == LAST_CHECKPOINT:
            self._rounds[target] = round_

    def _has_other_round(self, target: Path, round_: int | None) -> bool:
        """Whether the existing file is whole and holds another round than the one to be written."""
        if target not in self._rounds:
            self._rounds[target] = _rounds_of(target)
        present = self._rounds[target]
        return present is not None and present != round_

    def _try_to_load(self, buffer: io.BytesIO, target: Path) -> None:
        """Warn, at the first checkpoint, about values that ``weights_only=True`` does not load."""
        if self._tried:
            return
        self._tried = True
        try:
            buffer.seek(0)
            load_plain_values(buffer)
        except Exception as error:
            text = " ".join(str(error).split())
            at = text.lower().find("unsupported")
            rank_zero_warn(
                f"{target.name} cannot be loaded again, so the run cannot be resumed: its state "
                f"holds more than tensors and plain values ({text[max(at, 0) :][:160]}). Check the "
                "state_dict of callbacks and the model's on_save_checkpoint."
            )

    # -- reading -------------------------------------------------------------------------------

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; see :func:`~fedlightning.storage.checkpoint_reader.read_checkpoint`.

        Args:
            path: The file.
            map_location: The device for tensors, as in ``torch.load``.
            weights_only: False is refused: only tensors and plain values are ever loaded.

        Raises:
            CheckpointError: The file is not as a run wrote it.
            ConfigError: ``weights_only`` is False.
        """
        if weights_only is False:
            raise ConfigError(
                "weights_only=False would let a checkpoint run code; leave it out, or pass "
                "plugins=[TorchCheckpointIO()]."
            )
        return read_checkpoint(path, map_location, from_a_run=Path(path).name != _HANDED_OVER)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a file if it exists."""
        Path(path).unlink(missing_ok=True)
        self._rounds.pop(Path(path), None)


def _marked(checkpoint: dict[str, Any]) -> dict[str, Any]:
    ours = {**checkpoint.get("fedlightning", {}), "format": FORMAT, "version": __version__}
    return {**plain_checkpoint(checkpoint), "fedlightning": ours}


def _keep_as_previous(last: Path) -> None:
    """Link ``last.ckpt`` as the previous one, so that ``last.ckpt`` exists at every moment."""
    previous = last.with_name(PREVIOUS_CHECKPOINT)
    with temporary_beside(previous) as link:
        try:
            os.link(last, link)
        except OSError:  # no hard links on this filesystem: last.ckpt is missing for a moment
            os.replace(last, previous)
        else:
            os.replace(link, previous)  # a no-op if both are one file: the link is removed then


def _rounds_of(path: Path) -> int | None:
    try:
        return rounds_in(read_checkpoint(path))
    except (CheckpointError, EnvironmentFailure, LookupError):
        return None


def _round_or_none(checkpoint: dict[str, Any]) -> int | None:
    with contextlib.suppress(LookupError, TypeError):
        return rounds_in(checkpoint)
    return None


def _cannot_write(target: Path, error: OSError) -> str:
    for kept in (target.with_name(LAST_CHECKPOINT), target.with_name(PREVIOUS_CHECKPOINT)):
        if rounds := _rounds_of(kept):
            return (
                f"cannot write {target}: {reason(error)}; round {rounds - 1} kept: {kept} is "
                "whole. Fix that and resume with --ckpt_path last."
            )
    return f"cannot write {target}: {reason(error)}; no round is saved yet."


_FOLDERS = (f"*/*/{CHECKPOINTS}", f"*/{CHECKPOINTS}", CHECKPOINTS)


def has_checkpoint(root: str | os.PathLike[str]) -> bool:
    """Whether any run under a folder has left a checkpoint.

    Example:
        >>> has_checkpoint("no/such/folder")
        False
    """
    return bool(_checkpoints(root))


def _checkpoints(root: str | os.PathLike[str]) -> list[Path]:
    names = (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)
    patterns = [f"{folder}/{name}" for folder in _FOLDERS for name in names]
    return [file for pattern in patterns for file in Path(root).glob(pattern)]


def latest_checkpoint(root: str | os.PathLike[str]) -> Path:
    """Return the checkpoint from which the newest run under a folder resumes.

    Raises:
        CheckpointError: There is none.
    """
    found = _checkpoints(root)
    if not found:
        raise CheckpointError(
            f"ckpt_path='last': no lightning_logs/version_*/checkpoints/last.ckpt under {root}; "
            "pass a path, or leave ckpt_path out to train from scratch."
        )
    return good_checkpoint(max(found, key=lambda file: file.stat().st_mtime_ns).parent)


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path stands for: itself, or the newest checkpoint of a run folder.

    Raises:
        CheckpointError: It is a folder without one.
    """
    given = Path(path)
    if not given.is_dir():
        return given
    for folder in (given / CHECKPOINTS, given):
        if any((folder / name).is_file() for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT)):
            return good_checkpoint(folder)
    raise CheckpointError(
        f"ckpt_path={os.fspath(path)!r} is a folder with no checkpoint in it: neither "
        "checkpoints/last.ckpt nor last.ckpt."
    )


def good_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """Return the newest whole checkpoint of a folder, and warn if a newer one is not whole.

    Args:
        folder: The folder with ``last.ckpt`` and ``previous.ckpt``.

    Returns:
        ``last.ckpt`` if neither is whole; reading it raises an error that says why.
    """
    last, previous = Path(folder) / LAST_CHECKPOINT, Path(folder) / PREVIOUS_CHECKPOINT
    if is_good(last) or not is_good(previous):
        return last  # reading it raises what is wrong with it
    round_ = rounds_in(read_checkpoint(previous)) - 1
    what = "corrupt" if last.exists() else "missing"
    rank_zero_warn(f"{last} is {what}: using round {round_}, from {previous.name} beside it.")
    return previous
