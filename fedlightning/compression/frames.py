"""The outside of an encoded update: for each tensor its key, dtype, shape, form and payload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

__all__ = ["Frame", "Reader", "join_frames", "split_frames", "varint"]

_MAGIC = b"FLU1"
# a dtype's place in this list is what stands in the bytes: append, never insert
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    torch.complex64, torch.complex128,
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One tensor, encoded.

    Args:
        key: Its key in the state.
        dtype: Its dtype, which it has again after decoding.
        shape: Its shape.
        form: How the payload is to be read (see :mod:`fedlightning.federation.uplink.encoding`).
        payload: Its content.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    form: int
    payload: bytes


class Reader:
    """Bytes, read from front to back.

    Example:
        >>> reader = Reader(varint(300) + b"abc")
        >>> reader.varint(), reader.take(2), reader.rest()
        (300, b'ab', b'c')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: If there are fewer.
        """
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise ValueError(
                f"an encoded update ends after {len(self._data)} bytes, in the middle of a tensor"
            )
        self._at += count
        return piece

    def rest(self) -> bytes:
        """Return what is left."""
        return self.take(len(self._data) - self._at)

    def varint(self) -> int:
        """Return the next number, as :func:`varint` wrote it."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7


def varint(value: int) -> bytes:
    """Return a number >= 0 in groups of seven bits, the lowest first: one byte if it is small.

    Example:
        >>> varint(5).hex(), varint(300).hex()
        ('05', 'ac02')
    """
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def join_frames(frames: Iterable[Frame]) -> bytes:
    """Return tensors as bytes, each behind a header of its key and about six bytes more.

    Raises:
        ValueError: If a tensor's dtype has no place in the format.
    """
    all_frames = list(frames)
    pieces = [_MAGIC, varint(len(all_frames))]
    for frame in all_frames:
        if frame.dtype not in _DTYPES:
            raise ValueError(f"{frame.key} is {frame.dtype}, which cannot be encoded")
        key = frame.key.encode()
        pieces += [varint(len(key)), key, bytes([_DTYPES.index(frame.dtype), frame.form])]
        pieces += [varint(number) for number in (len(frame.shape), *frame.shape)]
        pieces += [varint(len(frame.payload)), frame.payload]
    return b"".join(pieces)


def split_frames(data: bytes) -> Iterator[Frame]:
    """Yield the tensors of :func:`join_frames`, in the same order.

    Raises:
        ValueError: If the bytes are not such, or not all of them.
    """
    reader = Reader(data)
    if reader.take(min(len(data), len(_MAGIC))) != _MAGIC:
        raise ValueError("these bytes are no encoded update")
    for _ in range(reader.varint()):
        key = reader.take(reader.varint()).decode()
        dtype, form = reader.take(2)
        if dtype >= len(_DTYPES):
            raise ValueError(
                f"{key} has the unknown dtype {dtype}; was a newer version the sender?"
            )
        shape = tuple(reader.varint() for _ in range(reader.varint()))
        yield Frame(key, _DTYPES[dtype], shape, form, reader.take(reader.varint()))
    if not reader.done:
        raise ValueError("an encoded update has bytes left over")
