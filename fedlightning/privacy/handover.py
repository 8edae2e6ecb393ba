"""A run with secure noise goes on in one folder at a time, and its ledgers with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fedlightning.errors import CheckpointError, EnvironmentFailure
from fedlightning.storage.checkpoint_io import has_checkpoint
from fedlightning.storage.files import write_atomically
from fedlightning.storage.locks import RunLock, lock_state
from fedlightning.storage.run_layout import CONTINUED

__all__ = ["hand_over"]


def hand_over(checkpoint: Path, folder: Path, ledgers: Sequence[str]) -> None:
    """Take the ledgers of a checkpoint's run over into the folder in which that run goes on.

    A folder that is left gets a note of where that is, so that no other run can go on from it.
    Nothing can be noticed of folders that were copied.

    Args:
        checkpoint: The checkpoint.
        folder: The run folder, whose lock the run holds; the checkpoint may be in it.
        ledgers: The names of the files that must be beside the checkpoint.

    Raises:
        CheckpointError: The run has gone on elsewhere, or its ledgers are lost.
        EnvironmentFailure: Another run is at work in its folder, or where it has gone on.
    """
    run, folder = _run_of(checkpoint, ledgers), folder.resolve()
    lock = RunLock(run)
    if run != folder:
        lock.acquire()
    try:
        source = run
        while (there := _gone_on(source, folder)) is not None:
            source = there
        if source != folder:
            for name in ledgers:
                write_atomically(folder / name, (source / name).read_bytes())
        if run == folder:
            (run / CONTINUED).unlink(missing_ok=True)
        else:
            note = {"folder": os.path.relpath(folder, run)}
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


def _gone_on(run: Path, folder: Path) -> Path | None:
    """Return the folder in which a run has gone on and ended before its first checkpoint, if any.

    Args:
        run: Its folder.
        folder: The folder in which it is to go on, whose lock is held.

    Raises:
        CheckpointError: It has gone on there, with checkpoints.
        EnvironmentFailure: It is at work there.
    """
    if (there := _next(run)) is None:
        return None
    if not there.is_dir():
        raise CheckpointError(
            f"{run} has gone on in {there}, which is missing, and with it what was released there; "
            "put that folder back, or start anew."
        )
    if there != folder and lock_state(there) == "held":
        raise EnvironmentFailure(
            f"{run} goes on in {there}, where another run is at work, and each of two would count "
            "its own releases alone; wait for that one or stop it, and resume it."
        )
    if has_checkpoint(there):
        raise CheckpointError(
            f"{run} has gone on in {there}, and two runs from one checkpoint would each count "
            "their own releases alone; resume that one (its checkpoints/last.ckpt), or start anew."
        )
    return there


def _next(run: Path) -> Path | None:
    path = run / CONTINUED
    if not path.is_file():
        return None
    folder: str = json.loads(path.read_text())["folder"]
    return (run / folder).resolve()
