"""Random streams, each named by seed, purpose, round, client and epoch.

No two components share a generator, so neither the order in which clients run nor the worker that
runs them can change a result.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch

__all__ = ["Key", "Purpose", "default_seed", "forked_generators"]

Purpose = Literal[
    "partition", "cohort", "fit", "personalize", "evaluate", "apart", "server", "held_out",
    "uplink", "public", "delay", "noise",
]  # fmt: skip
"""A stream is numbered by its position here, so new ones must come last."""
_numpy: Any = np.random  # its type stubs lack two functions
_PURPOSES: tuple[str, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Key:
    """The name of one random stream.

    Streams of different keys are independent (``numpy.random.SeedSequence`` with a spawn key; sums
    such as ``seed + round + client`` collide).

    Args:
        seed: The run's seed.
        purpose: The use of the numbers.
        round: Round index, from 0.
        client: Client id.
        epoch: Local epoch, from 0.

    Example:
        >>> key = Key(seed=7, purpose="fit", round=3, client=12)
        >>> key.integer() == Key(7, "fit", 3, 12).integer()
        True
        >>> key.integer() == key.at(epoch=1).integer()
        False
    """

    seed: int
    purpose: Purpose
    round: int = 0
    client: int = 0
    epoch: int = 0

    def at(self, **changes: int) -> Key:
        """Return the key with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def sequence(self) -> np.random.SeedSequence:
        """Return the seed sequence that this key names."""
        spawn_key = (_PURPOSES.index(self.purpose), self.round, self.client, self.epoch)
        return np.random.SeedSequence(self.seed, spawn_key=spawn_key)

    def integer(self) -> int:
        """Return 63 random bits."""
        return int(self.sequence().generate_state(1, np.uint64)[0] >> 1)

    def numpy(self) -> np.random.Generator:
        """Return a fresh NumPy generator at the start of the stream."""
        return np.random.default_rng(self.sequence())

    def torch(self) -> torch.Generator:
        """Return a fresh CPU torch generator at the start of the stream."""
        return torch.Generator().manual_seed(self.integer())


def default_seed(seed: int | None = None) -> int:
    """Return ``seed``, else the one set by ``pl.seed_everything``, else 0."""
    if seed is not None:
        return seed
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@cache
def _spare() -> np.random.MT19937:
    return np.random.MT19937(0)  # making one costs far more than seeding it


def _spare_bit_generator() -> np.random.MT19937:
    """Return one that is not in use: nested forks must not share one."""
    return _spare() if _numpy.get_bit_generator() is not _spare() else np.random.MT19937(0)


@contextmanager
def forked_generators(
    key: Key, device: torch.device | None = None, paused: list[Any] | None = None
) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch with ``key``; restore them afterwards.

    Dropout, augmentation and all other random numbers of a user's module then depend only on the
    key. Only the default CPU generator and that of ``device`` are seeded: ``torch.manual_seed``
    visits every backend and costs sixty times as much. NumPy's legacy generator gets another bit
    generator for the duration: reading and writing its state would cost more than everything else.
    (So if it has stored the second of a pair of normal numbers, that number is lost.)

    Args:
        key: Names the stream.
        device: A device other than the CPU on which random numbers are drawn.
        paused: An empty list; a later ``with`` block given the same list continues where this one
            stops, whatever was drawn in between.
    """
    # torch.cuda, torch.mps, ...: these have the same three functions
    backend = getattr(torch, device.type) if device is not None and device.type != "cpu" else None
    before = _states(backend)
    if paused:
        _restore(paused.pop(), backend)
    else:
        seed = key.integer()
        random.seed(seed)
        own = np.random.MT19937(0) if paused is not None else _spare_bit_generator()
        _numpy.set_bit_generator(own)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        if backend is not None:
            backend.manual_seed(seed)
    try:
        yield
    finally:
        if paused is not None:
            paused.append(_states(backend))
        _restore(before, backend)


def _states(backend: Any) -> tuple[Any, ...]:
    return (
        random.getstate(),
        _numpy.get_bit_generator(),
        torch.default_generator.get_state(),
        backend.get_rng_state() if backend is not None else None,
    )


def _restore(states: tuple[Any, ...], backend: Any) -> None:
    random.setstate(states[0])
    _numpy.set_bit_generator(states[1])
    torch.default_generator.set_state(states[2])
    if backend is not None:
        backend.set_rng_state(states[3])
