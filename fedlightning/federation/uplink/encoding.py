"""The inside of an encoded update: the ways in which one tensor is written."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlightning.federation.uplink.frames import Frame, Reader, varint

__all__ = ["exact", "levels", "sparse", "unpack"]

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
        raise ValueError(f"levels of {dtype}, which is no floating-point type")
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
