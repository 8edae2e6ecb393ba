"""Where an error came from: the last line of code that is the user's own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

__all__ = ["causes", "place_of", "raised_by_user"]


def raised_by_user(error: BaseException) -> bool:
    """Whether the last line that is no library's is neither ours: code of the user's own."""
    return _last_own_frame(error) is not None


def place_of(error: BaseException) -> str:
    """Return `` (file:line)`` of the user's line that an error came from, or an empty string."""
    frame = _last_own_frame(error)
    if frame is None:
        return ""
    return f" ({os.path.relpath(frame.filename)}:{frame.lineno})"


def _last_own_frame(error: BaseException) -> traceback.FrameSummary | None:
    package = str(Path(__file__).resolve().parents[1])
    libraries = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "<frozen")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(package):
            return None
        if not frame.filename.startswith(libraries) and os.path.isfile(frame.filename):
            return frame
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
