"""The names of the files and folders of a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["FOLDER", "INDEX", "LAST", "PREVIOUS", "remove_unfinished"]


LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


FOLDER, INDEX = "personalized", "index.json"


_NEW, _OLD = f".{FOLDER}.new", f".{FOLDER}.old"


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process has left half-made; a former personalization stays, or returns.

    Nobody else may be writing there.
    """
    shutil.rmtree(run / _NEW, ignore_errors=True)
    if not (run / _OLD).exists():
        return
    if (run / FOLDER).exists():
        shutil.rmtree(run / _OLD, ignore_errors=True)
    else:
        os.replace(run / _OLD, run / FOLDER)
