"""The inside of an encoded update: the ways in which one tensor is written."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Frame",
    "Reader",
    "exact",
    "join_frames",
    "levels",
    "sparse",
    "split_frames",
    "unpack",
    "varint",
]

_EXACT, _POSITIONS, _BITMAP, _LEVELS = range(4)
_MOST = 127  # levels on either side of zero, so that zero is one and both signs are alike


def exact(key: str, value: Tensor) -> Frame:
    """Return a tensor as it is.

    Example:
        >>> unpack(exact("n", torch.tensor(3)))
        tensor(3)
    """
    return Frame(key, value.dtype, tuple(value.shape), _EXACT, _to_bytes(value))


def sparse(key: str, value: Tensor, kept: Tensor) -> Frame:
    """Return the kept entries of a tensor; the others are zero after decoding.

    Where they are is a list of positions, in as few bytes each as the tensor's size allows, or one
    bit for each entry: whichever is shorter.

    Args:
        key: Its key.
        value: The tensor.
        kept: Which entries to keep: a bool tensor of the same shape.

    Example:
        >>> value = torch.tensor([1.0, 2.0, 3.0])
        >>> unpack(sparse("w", value, value > 2))
        tensor([0., 0., 3.])
    """
    mask = kept.reshape(-1).numpy()
    values = _to_bytes(value.reshape(-1)[kept.reshape(-1)])
    positions = np.flatnonzero(mask).astype(_position_type(mask.size)).tobytes()
    bitmap = np.packbits(mask).tobytes()
    if len(positions) <= len(bitmap):
        payload = varint(int(mask.sum())) + positions + values
        return Frame(key, value.dtype, tuple(value.shape), _POSITIONS, payload)
    return Frame(key, value.dtype, tuple(value.shape), _BITMAP, bitmap + values)


def levels(key: str, value: Tensor) -> Frame:
    """Return a tensor as 8-bit levels -127..127 of one step; a tensor of zeros needs no levels.

    Example:
        >>> unpack(levels("w", torch.tensor([-127.0, 0.4, 3.0])))
        tensor([-127.,    0.,    3.])
    """
    wide = value.double().reshape(-1)
    step = float(wide.abs().max()) / _MOST if wide.numel() else 0.0
    payload = struct.pack("<d", step)
    if step > 0:
        payload += _to_bytes((wide / step).round().clamp(-_MOST, _MOST).to(torch.int8))
    return Frame(key, value.dtype, tuple(value.shape), _LEVELS, payload)


def unpack(frame: Frame) -> Tensor:
    """Return the tensor of a frame.

    Raises:
        ValueError: If its payload does not fit its shape, or its form is not known.
    """
    if frame.form >= len(_UNPACK):
        raise ValueError(
            f"{frame.key} has the unknown form {frame.form}; was a newer version the sender?"
        )
    reader = Reader(frame.payload)
    flat = _UNPACK[frame.form](reader, frame.dtype, math.prod(frame.shape))
    if not reader.done:
        raise ValueError(f"{frame.key} of an encoded update has bytes left over")
    return flat.reshape(frame.shape)


def _unpack_exact(reader: Reader, dtype: torch.dtype, size: int) -> Tensor:
    return _from_bytes(reader, dtype, size)


def _unpack_positions(reader: Reader, dtype: torch.dtype, size: int) -> Tensor:
    count, kind = reader.varint(), _position_type(size)
    positions = np.frombuffer(reader.take(count * kind.itemsize), kind).astype(np.int64)
    if count and positions.max() >= size:
        raise ValueError(f"position {positions.max()} of a tensor with {size} entries")
    return _spread(torch.from_numpy(positions), _from_bytes(reader, dtype, count), size)


def _unpack_bitmap(reader: Reader, dtype: torch.dtype, size: int) -> Tensor:
    bits = np.frombuffer(reader.take((size + 7) // 8), np.uint8)
    positions = torch.from_numpy(np.flatnonzero(np.unpackbits(bits, count=size)))
    return _spread(positions, _from_bytes(reader, dtype, len(positions)), size)


def _unpack_levels(reader: Reader, dtype: torch.dtype, size: int) -> Tensor:
    if not dtype.is_floating_point:
        raise ValueError(f"levels of {dtype}, which is not a floating-point type")
    (step,) = struct.unpack("<d", reader.take(8))
    if step == 0:
        return torch.zeros(size, dtype=dtype)
    largest = torch.finfo(dtype).max  # 127 steps may round to more than the number they came from
    wide = _from_bytes(reader, torch.int8, size).double().mul_(step)
    return wide.clamp_(-largest, largest).to(dtype)


_UNPACK: tuple[Callable[[Reader, torch.dtype, int], Tensor], ...] = (
    _unpack_exact, _unpack_positions, _unpack_bitmap, _unpack_levels,
)  # fmt: skip


def _position_type(size: int) -> np.dtype[Any]:
    return np.min_scalar_type(max(size - 1, 0))  # the smallest unsigned type


def _spread(positions: Tensor, values: Tensor, size: int) -> Tensor:
    flat = torch.zeros(size, dtype=values.dtype)
    flat[positions] = values
    return flat


def _to_bytes(value: Tensor) -> bytes:
    # by way of bytes, because NumPy has no bfloat16
    return value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _from_bytes(reader: Reader, dtype: torch.dtype, count: int) -> Tensor:
    data = reader.take(count * dtype.itemsize)
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


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
