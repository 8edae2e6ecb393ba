"""The seal of a checkpoint file: a digest of all its bytes, in the comment of the zip archive.

A zip archive may end with a comment, and whoever reads the archive skips it. So ``torch.load``,
``Module.load_from_checkpoint`` and ``unzip`` read a sealed file as any other one, while a bit that
flips anywhere in it, names, tables and the comment itself included, is found out.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from typing import BinaryIO

__all__ = ["CorruptFile", "append_digest", "verify_digest"]

_MARK = b"fedlightning sha256 "
_SEAL_SIZE = len(_MARK) + 64
_BEGIN, _END = b"PK\x03\x04", b"PK\x05\x06"
_END_SIZE = 22  # of an archive's last record without its comment
_CHUNK = 1 << 20


class CorruptFile(Exception):
    """A file is not what was written; the text says how one can tell."""


def append_digest(archive: bytearray) -> None:
    """Append the SHA-256 of a zip archive to it, as its comment.

    Args:
        archive: The bytes of an archive without a comment; changed in place.

    Example:
        >>> import io
        >>> with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        ...     file.writestr("a.txt", "hello")
        >>> archive = bytearray(buffer.getvalue())
        >>> append_digest(archive)
        >>> verify_digest(io.BytesIO(archive)), zipfile.ZipFile(io.BytesIO(archive)).read("a.txt")
        (True, b'hello')
        >>> archive[40] ^= 1
        >>> verify_digest(io.BytesIO(archive))
        Traceback (most recent call last):
        fedlightning.storage.digest.CorruptFile: its bytes are not those that were written
    """
    assert archive[-_END_SIZE:].startswith(_END), "an archive without a comment"
    archive[-2:] = struct.pack("<H", _SEAL_SIZE)
    archive += _MARK + hashlib.sha256(archive).hexdigest().encode()


def verify_digest(file: BinaryIO) -> bool:
    """Compare a file with its seal; nothing in it is interpreted before.

    Args:
        file: Open for reading; its position afterwards is the start.

    Returns:
        True for a file as it was written, false for a sound archive that nobody has sealed.

    Raises:
        CorruptFile: If it is neither.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise CorruptFile("it is empty: its writing was cut short")
    file.seek(max(size - _SEAL_SIZE, 0))
    tail = file.read()
    file.seek(0)
    if tail.startswith(_MARK):
        if _digest(file, size - _SEAL_SIZE) != tail[len(_MARK) :]:
            raise CorruptFile("its bytes are not those that were written")
        file.seek(0)
        return True
    begin = file.read(len(_BEGIN))
    file.seek(0)
    if begin != _BEGIN:
        raise CorruptFile("it is no archive, or its ends are gone")
    if not (tail[-_END_SIZE:].startswith(_END) and tail.endswith(b"\0\0")):
        raise CorruptFile("its end is missing")
    _check_records(file)
    file.seek(0)
    return False


def _digest(file: BinaryIO, size: int) -> bytes:
    content = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        content.update(chunk)
        size -= len(chunk)
    return content.hexdigest().encode()


def _check_records(file: BinaryIO) -> None:
    """Read all records of an archive, each of which has a checksum of its own."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except Exception as error:  # zipfile raises many kinds on damaged tables
        raise CorruptFile(f"its table of contents is damaged ({type(error).__name__})") from error
    if bad is not None:
        raise CorruptFile(f"the checksum of {bad} is wrong")
