"""Locks on the folders of runs and studies, released when the process that holds them ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NoReturn

from fedlightning.errors import EnvironmentFailure
from fedlightning.storage.files import os_errors_as_failures

__all__ = ["RunLock", "lock_state", "process_exists", "study_lock", "study_process"]

_FLOCK = "hhqqi"  # Linux's struct flock: type, whence, start, length, pid
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

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def release(self) -> None:
        """Release the lock and remove its file; do nothing if it is not held."""
        if self._handle is None:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._handle)
        if self._identity is not None:
            _HELD.pop(self._identity, None)
        self._handle = None


def lock_state(folder: str | os.PathLike[str]) -> Literal["free", "held", "left"]:
    """Return whether a run is at work in a folder, without touching its lock.

    Returns:
        ``held`` by a run; ``left`` by one that was killed, which alone leaves the file; else
        ``free``. Where the system cannot say, the process that is named in the file counts, and one
        of another machine is taken to live.

    Example:
        >>> lock = RunLock(getfixture("tmp_path") / "version_3")
        >>> lock.acquire()
        >>> held = lock_state(lock.folder)
        >>> lock.release()
        >>> held, lock_state(lock.folder)
        ('held', 'free')
    """
    folder = Path(folder)
    path = folder.parent / f".{folder.name}.lock"
    try:
        status = path.stat()
        if (status.st_dev, status.st_ino) in _HELD:  # closing it here would release the lock
            return "held"
        with path.open("rb") as file:
            who = file.read(200).decode(errors="replace").split()
            held = _system_says_held(file.fileno())
    except OSError:
        return "free"
    if held is None:
        here = who[-1:] == [socket.gethostname()]
        held = process_exists(who[0] if who else "") if here else bool(who)
    return "held" if held else "left"


def _system_says_held(handle: int) -> bool | None:
    if sys.platform != "linux":
        return None
    import fcntl

    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        found = fcntl.fcntl(handle, fcntl.F_GETLK, asked)
    except OSError:  # a filesystem without locks
        return None
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


def process_exists(pid: str) -> bool:
    """Whether a process with that number runs on this machine.

    Example:
        >>> process_exists(str(os.getpid())), process_exists("unknown")
        (True, False)
    """
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


_NAME = ".compare.lock"


def study_process(folder: Path) -> str:
    """Return the number of the process that last worked on a study; empty if none is known."""
    try:
        return (folder / _NAME).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


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
