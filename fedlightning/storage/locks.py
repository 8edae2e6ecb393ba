"""Locks on the folders of runs and studies, released when the process that holds them ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.files import os_errors_as_failures

__all__ = ["RunLock", "study_lock"]

_HELD: dict[tuple[int, int], Path] = {}  # a process could take the system's lock twice
_BUSY = {errno.EACCES, errno.EAGAIN}


class RunLock:
    """Keeps a second run out of a folder until it is released or its process ends.

    The lock is the system's (``fcntl.lockf``), on a file beside the folder, ``.version_3.lock``; a
    leftover file does not lock. A forked process does not inherit it. On a filesystem without
    locks, there is only a warning.

    Args:
        folder: The folder; it is created if missing.

    Raises:
        EnvironmentFailure: From :meth:`acquire`: another run is using the folder, or it cannot be
            written.

    Example:
        >>> lock = RunLock(getfixture("tmp_path") / "version_3")
        >>> lock.acquire()
        >>> RunLock(lock.folder).acquire()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.EnvironmentFailure: another run (pid ... on ...) is at work in ...
        >>> lock.release()
        >>> [entry.name for entry in lock.folder.parent.iterdir()]
        ['version_3']
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._path = self.folder.parent / f".{self.folder.name}.lock"
        self._handle: int | None = None
        self._identity: tuple[int, int] | None = None

    def acquire(self) -> None:
        """Take the lock, or raise an error that names its holder."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._take(fcntl):
                pass
        except OSError as error:
            if error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}:
                from pytorch_lightning.utilities import rank_zero_warn  # torch: seconds

                rank_zero_warn(f"{self.folder} is on a filesystem without locks: start no second "
                               "run in it.")  # fmt: skip
                return
            raise EnvironmentFailure(
                f"{self.folder} is not writable: {error.strerror or error}; choose another "
                "trainer.default_root_dir."
            ) from error

    def _take(self, fcntl: object) -> bool:
        """Lock the file; return False if its last holder has just removed it."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        status = os.fstat(handle)
        identity = (status.st_dev, status.st_ino)
        if identity in _HELD:  # closing the handle here would release the lock
            self._raise_busy(os.read(handle, 200))
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined]
        except OSError as error:
            holder = os.read(handle, 200)
            os.close(handle)
            if error.errno in _BUSY:
                self._raise_busy(holder)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == status.st_ino:
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                self._handle, self._identity = handle, identity
                _HELD[identity] = self._path
                return True
        os.close(handle)
        return False

    def _raise_busy(self, holder: bytes) -> NoReturn:
        who = holder.decode(errors="replace").strip() or "unknown"
        raise EnvironmentFailure(
            f"another run (pid {who}) is at work in {self.folder}: wait for it, stop it, or choose "
            "another trainer.default_root_dir."
        )

    def release(self) -> None:
        """Release the lock and remove its file; do nothing if it is not held."""
        if self._handle is None:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._handle)
        if self._identity is not None:
            _HELD.pop(self._identity, None)
        self._handle = None


_NAME = ".compare.lock"


@contextlib.contextmanager
def study_lock(folder: Path) -> Iterator[int | None]:
    """Lock a study's folder inside the ``with`` block.

    The lock is ``flock``'s, which child processes inherit: if this process is killed, no other
    command disturbs the runs that survive it. On a filesystem without locks, there is none.

    Args:
        folder: The folder of the study; it is created if missing.

    Yields:
        The file descriptor for child processes to inherit.

    Raises:
        EnvironmentFailure: Another command holds the lock, or the folder cannot be written.

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
    with os_errors_as_failures("write", folder / _NAME):
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
