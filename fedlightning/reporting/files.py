"""Writing a file so that a reader finds the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fedlightning.errors import EnvironmentFailure

__all__ = ["teaching_os_errors", "write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at ``path`` by ``content``, all of it or nothing.

    The bytes go to a temporary file in the same folder, which then takes the name: a rename is
    atomic only within one filesystem, so the system's own folder for temporary files would not do.
    Missing folders are made.

    Args:
        path: The file to write.
        content: Its bytes.

    Raises:
        EnvironmentFailure: The file cannot be written. What was there before is untouched, and no
            temporary file stays behind.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> write_atomically(folder / "runs" / "note.txt", b"done")
        >>> [entry.name for entry in (folder / "runs").iterdir()]
        ['note.txt']
    """
    target = Path(path)
    # mkstemp would give the file mode 0600, which hides it from the group for good.
    name = f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp"
    temporary = target.with_name(name)
    with teaching_os_errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def teaching_os_errors(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an ``OSError`` into a failure that names the file and the reason.

    Args:
        verb: What was tried: ``read``, ``write``, ``create``.
        path: The file or folder it was tried on.

    Raises:
        EnvironmentFailure: In place of the ``OSError``.

    Example:
        >>> with teaching_os_errors("read", "runs/metrics.csv"):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        fedlightning.errors.EnvironmentFailure: cannot read runs/metrics.csv: Permission denied
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentFailure(f"cannot {verb} {os.fspath(path)}: {reason}") from error
