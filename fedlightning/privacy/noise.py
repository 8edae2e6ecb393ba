"""Gaussian noise for one round: from a named stream, or from the system's randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedlightning.core.seeding import Key

__all__ = ["KeyedNoise", "Noise", "SystemNoise"]

_BLOCK = 2**20


class Noise(Protocol):
    """Standard normal numbers; no two calls give the same."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return independent standard normal numbers, float64, on the CPU."""


class KeyedNoise:
    """Noise that can be repeated: a simulation, and no protection against who knows the seed.

    Args:
        key: The stream.

    Example:
        >>> one, other = (KeyedNoise(Key(0, "noise", round=3)) for _ in range(2))
        >>> torch.equal(one.normal([4]), other.normal([4]))
        True
    """

    def __init__(self, key: Key) -> None:
        self._generator = key.torch()

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return the stream's next numbers."""
        return torch.randn(tuple(shape), generator=self._generator, dtype=torch.float64)


class SystemNoise:
    """Noise that nobody can foresee: SHAKE-256 of a secret, then Box and Muller's transform.

    The secret is drawn anew for each round and forgotten, so that all workers can make the same
    noise of 32 bytes.

    Args:
        secret: Bytes of the system's source of randomness, 32 or more.

    Example:
        >>> import os
        >>> SystemNoise(os.urandom(32)).normal([2, 3]).shape
        torch.Size([2, 3])
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._calls = 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return numbers of 53 random bits each."""
        count = int(np.prod(tuple(shape), dtype=np.int64))
        numbers = np.empty(count, np.float64)
        for start in range(0, count, _BLOCK):
            block = numbers[start : start + _BLOCK]
            block[:] = self._block((len(block) + 1) // 2).reshape(-1)[: len(block)]
        return torch.from_numpy(numbers).reshape(tuple(shape))

    def _block(self, pairs: int) -> np.ndarray:
        """Return independent normal numbers, shape (2, pairs)."""
        self._calls += 1
        stream = hashlib.shake_256(self._secret + self._calls.to_bytes(8, "big"))
        bits = np.frombuffer(stream.digest(16 * pairs), np.uint64).reshape(2, pairs) >> 11
        uniform = (bits + 0.5) * 2.0**-53  # in (0, 1], as the largest is rounded: no log(0)
        radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)])
