"""The digest of a checkpoint file: a SHA-256 of all its bytes, in the comment of the zip archive.

A zip archive may end with a comment, which readers skip. So ``torch.load``,
``Module.load_from_checkpoint`` and ``unzip`` read a file with a digest like any other, while a bit
that flips anywhere in it, in names, tables or the comment itself, is detected.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from typing import BinaryIO

__all__ = ["CorruptFile", "append_digest", "verify_digest"]

_MARK = b"fedlightning sha256 "
_COMMENT_SIZE = len(_MARK) + 64
_BEGIN, _END = b"PK\x03\x04", b"PK\x05\x06"
_END_SIZE = 22  # of an archive's last record without its comment
_CHUNK = 1 << 20


class CorruptFile(Exception):
    """A file is not as it was written; the text says why."""


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
    archive[-2:] = struct.pack("<H", _COMMENT_SIZE)
    archive += _MARK + hashlib.sha256(archive).hexdigest().encode()


def verify_digest(file: BinaryIO) -> bool:
    """Verify the digest of a file, before anything in it is interpreted.

    Args:
        file: The file, open for reading; its position is the start afterwards.

    Returns:
        True for a file as it was written, False for an intact archive without a digest.

    Raises:
        CorruptFile: It is neither.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise CorruptFile("it is empty: its writing was cut short")
    file.seek(max(size - _COMMENT_SIZE, 0))
    tail = file.read()
    file.seek(0)
    if tail.startswith(_MARK):
        if _digest(file, size - _COMMENT_SIZE) != tail[len(_MARK) :]:
            raise CorruptFile("its bytes are not those that were written")
        file.seek(0)
        return True
    begin = file.read(len(_BEGIN))
    file.seek(0)
    if begin != _BEGIN:
        raise CorruptFile("it is not an archive, or its beginning and end are missing")
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
    """Verify the checksum of every record of an archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except Exception as error:  # zipfile raises many kinds on damaged tables
        raise CorruptFile(f"its table of contents is damaged ({type(error).__name__})") from error
    if bad is not None:
        raise CorruptFile(f"the checksum of {bad} is wrong")
