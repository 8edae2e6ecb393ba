"""One command at a time in a study's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.files import teaching_os_errors

__all__ = ["study_lock"]

_NAME = ".compare.lock"


@contextlib.contextmanager
def study_lock(folder: Path) -> Iterator[int | None]:
    """Hold a study's folder inside the ``with`` block.

    The lock is ``flock``'s, because that passes to child processes: should this process be killed
    and its runs live on, no other command disturbs them. Where there are no such locks there is
    none.

    Args:
        folder: The folder of the study; it is made if need be.

    Yields:
        The file descriptor that child processes are to inherit.

    Raises:
        EnvironmentFailure: Another command has the folder, or it cannot be written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with study_lock(folder), study_lock(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        fedlightning.errors.EnvironmentFailure: another compare, or a run that one has left, ...
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    with teaching_os_errors("write", folder / _NAME):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 40).decode(errors="replace").strip() or "unknown"
            raise EnvironmentFailure(
                f"another compare, or a run that one has left, is at work in {folder} (started by "
                f"pid {pid}): wait for it, or stop it."
            ) from None
        except OSError:  # a filesystem without locks
            yield None
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)
