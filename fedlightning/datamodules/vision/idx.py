"""A reader of idx files, the format of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedlightning.errors import DataError

__all__ = ["find_idx", "read_idx"]

_UBYTE = 0x08
_BEST_DEFLATE_RATIO = 1032


def read_idx(path: str | Path) -> np.ndarray:
    """Return the unsigned bytes of an idx file, in the shape given by its header.

    The header is four bytes (0, 0, type, number of dimensions), then each dimension as a big-endian
    32-bit integer. The type must be 8, unsigned byte. No memory is allocated that the file cannot
    fill.

    Args:
        path: The file; it is unzipped if its name ends in ``.gz``.

    Raises:
        DataError: The file cannot be read, or is corrupt: a wrong magic number, too short, too
            long.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels-idx1-ubyte")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        ...     read_idx(path)
        array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != bytes([0, 0, _UBYTE]) or magic[3] == 0:
                raise DataError(
                    f"{path} is corrupt: it does not begin as idx data of unsigned bytes"
                )
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise DataError(f"{path} is corrupt: its header ends too early")
            shape = struct.unpack(f">{magic[3]}I", header)
            expected = math.prod(shape)
            largest = path.stat().st_size * (_BEST_DEFLATE_RATIO if zipped else 1)
            values = file.read(min(expected, largest) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is corrupt: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(values) != expected:
        found = "more" if len(values) > expected else len(values)
        raise DataError(f"{path} is corrupt: {expected} bytes of data expected, {found} found")
    return np.frombuffer(values, np.uint8).reshape(shape)


def find_idx(name: str, folders: Sequence[Path], filenames: Sequence[str]) -> list[Path]:
    """Return the paths of all ``filenames``, plain or with ``.gz``, in one folder.

    It is the first folder that has the first file.

    Args:
        name: Name of the dataset, for the message.
        folders: The folders to search, in this order.
        filenames: Names without ``.gz``.

    Raises:
        DataError: No folder has the first file, or the one that does lacks another.
    """
    for folder in folders:
        found = [_plain_or_zipped(folder / filename) for filename in filenames]
        if found[0] is None:
            continue
        for filename, path in zip(filenames, found, strict=True):
            if path is None:
                raise DataError(f"{name}: {folder} has {filenames[0]} but not {filename}[.gz]")
        return [path for path in found if path is not None]
    raise DataError(
        f"{name} not found: no {filenames[0]}[.gz] in {', '.join(map(str, folders))}; "
        f"set root to the folder that has it, or download=true, which needs a network"
    )


def _plain_or_zipped(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None
