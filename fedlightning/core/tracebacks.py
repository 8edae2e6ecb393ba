"""The origin of an error: the innermost line of user code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

__all__ = ["causes", "place_of", "raised_by_user"]


def raised_by_user(error: BaseException) -> bool:
    """Whether the innermost frame outside any library is user code."""
    return _innermost_user_frame(error) is not None


def place_of(error: BaseException) -> str:
    """Return `` (file:line)`` of the line of user code that raised an error, or an empty string."""
    frame = _innermost_user_frame(error)
    if frame is None:
        return ""
    return f" ({os.path.relpath(frame.filename)}:{frame.lineno})"


def _innermost_user_frame(error: BaseException) -> traceback.FrameSummary | None:
    package = str(Path(__file__).resolve().parents[1])
    libraries = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "<frozen")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(package):
            return None
        if not frame.filename.startswith(libraries) and os.path.isfile(frame.filename):
            return frame
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
