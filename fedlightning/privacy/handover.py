"""A run with secure noise goes on in one folder at a time, and its ledgers with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fedlightning.errors import CheckpointError
from fedlightning.storage.checkpoint_io import has_checkpoint
from fedlightning.storage.files import write_atomically
from fedlightning.storage.locks import RunLock
from fedlightning.storage.run_layout import CONTINUED

__all__ = ["hand_over", "require_newest"]


def require_newest(run: Path) -> None:
    """Refuse a run that has gone on in another folder: its ledgers are there.

    Raises:
        CheckpointError: It has.
    """
    if (there := _next(run)) is None:
        return
    if not there.is_dir():
        raise CheckpointError(
            f"{run} has gone on in {there}, which is missing, and with it what was released there; "
            "put that folder back, or start anew."
        )
    if has_checkpoint(there):
        raise CheckpointError(
            f"{run} has gone on in {there}, and two runs from one checkpoint would each count "
            "their own releases alone; resume that one (its checkpoints/last.ckpt), or start anew."
        )


def hand_over(checkpoint: Path, folder: Path, ledgers: Sequence[str]) -> None:
    """Take the ledgers beside a checkpoint over into the folder in which its run goes on.

    The folder that is left gets a note of where that is, so that no other run can go on from it.
    Nothing can be noticed of folders that were copied.

    Args:
        checkpoint: The checkpoint.
        folder: The run folder; there is nothing to do if the checkpoint is in it.
        ledgers: The names of the files that must be beside the checkpoint.

    Raises:
        CheckpointError: The run has gone on elsewhere, or its ledgers are lost.
        EnvironmentFailure: Another process is at work in its folder.
    """
    run = _run_of(checkpoint, ledgers)
    if run == folder.resolve():
        require_newest(run)
        return
    lock = RunLock(run)
    lock.acquire()
    try:
        require_newest(run)
        source = run
        while (there := _next(source)) is not None:  # which ended before its first checkpoint
            require_newest(source := there)
        for name in ledgers:
            write_atomically(folder / name, (source / name).read_bytes())
        note = {"folder": os.path.relpath(folder.resolve(), run)}
        write_atomically(run / CONTINUED, json.dumps(note).encode())
    finally:
        lock.release()


def _run_of(checkpoint: Path, ledgers: Sequence[str]) -> Path:
    """Return the folder with a checkpoint's ledgers."""
    places = [checkpoint.resolve().parent.parent, checkpoint.resolve().parent]
    for place in places:
        if all((place / name).is_file() for name in ledgers):
            return place
    missing = next(name for name in ledgers if not (places[0] / name).is_file())
    raise CheckpointError(
        f"{places[0] / missing}: the ledger of what was released is missing, and without it nobody "
        "knows what the run has cost. Resume a checkpoint in its run folder (ckpt_path=last), put "
        "the file back, or start anew."
    )


def _next(run: Path) -> Path | None:
    path = run / CONTINUED
    if not path.is_file():
        return None
    folder: str = json.loads(path.read_text())["folder"]
    return (run / folder).resolve()
