"""Atomic writes: a reader finds the old file or the new one, never a part of either."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from fedlightning.errors import EnvironmentFailure

__all__ = [
    "append_line",
    "os_errors_as_failures",
    "reason",
    "remove_stale_files",
    "sync_folder",
    "temporary_beside",
    "write_atomically",
]

_NO_SPACE = {errno.EDQUOT, errno.EFBIG}  # ENOSPC says so itself
_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.tmp")


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at ``path`` by ``content``, completely or not at all.

    The bytes go to a temporary file in the same folder, which is then renamed: a rename is atomic
    only within one filesystem, so the system's temporary folder would not do. Missing folders are
    created.

    Args:
        path: The file to write.
        content: Its bytes.

    Raises:
        EnvironmentFailure: The file cannot be written. An existing file is untouched, and no
            temporary file is left.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> write_atomically(folder / "runs" / "note.txt", b"done")
        >>> [entry.name for entry in (folder / "runs").iterdir()]
        ['note.txt']
    """
    target = Path(path)
    with os_errors_as_failures("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(target) as temporary:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Yield a name in the target's folder; a file of that name is removed at the end."""
    # mkstemp would create the file with mode 0600, which hides it from the group for good.
    name = f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp"
    temporary = target.with_name(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append_line(path: str | os.PathLike[str], line: str) -> None:
    r"""Append a line to a file, whole or not at all; it is on the disk when this returns.

    What a crash has left of an earlier line is cut off first: it would become one with this line,
    and nobody was told that it is there. No other process may be writing.

    Args:
        path: The file, which exists.
        line: The line, without a line feed.

    Raises:
        EnvironmentFailure: It cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "steps.csv"
        >>> _ = path.write_text("client,steps\n3,4\n5,")
        >>> append_line(path, "5,2")
        >>> path.read_text()
        'client,steps\n3,4\n5,2\n'
    """
    content = f"{line}\n".encode()
    with os_errors_as_failures("write", path), Path(path).open("r+b", buffering=0) as file:
        end = _cut_to_whole_lines(file)
        if file.write(content) != len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def _cut_to_whole_lines(file: FileIO) -> int:
    """Cut a torn last line off; return the position of the end, which is where the file is then."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    file.truncate(file.readall().rfind(b"\n") + 1)
    return file.seek(0, os.SEEK_END)


def remove_stale_files(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder.

    No other process may be writing there.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for name in (".last.ckpt.12-34.tmp", "last.ckpt", ".mine.tmp"):
        ...     (folder / name).touch()
        >>> remove_stale_files(folder)
        >>> sorted(entry.name for entry in folder.iterdir())
        ['.mine.tmp', 'last.ckpt']
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def os_errors_as_failures(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an ``OSError`` into a failure that names the file and the reason.

    Args:
        verb: The operation: ``read``, ``write``, ``create``.
        path: The file or folder.

    Raises:
        EnvironmentFailure: In place of the ``OSError``.

    Example:
        >>> with os_errors_as_failures("read", "runs/metrics.csv"):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        fedlightning.errors.EnvironmentFailure: cannot read runs/metrics.csv: Permission denied
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentFailure(f"cannot {verb} {os.fspath(path)}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Return why a file could not be written; all kinds of a full disk read alike.

    Example:
        >>> reason(OSError(errno.EFBIG, "File too large"))
        'no space left (File too large)'
    """
    text = error.strerror or str(error)
    return f"no space left ({text})" if error.errno in _NO_SPACE else text
