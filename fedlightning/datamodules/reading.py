"""Batches of a map-style dataset, read here or by processes that all clients share."""

from __future__ import annotations

import os
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["BatchReader", "Stream"]

_PREFETCH = 2
_REMEMBERED = 64

Rows = Sequence[int]
"""Indices of the examples of one batch."""


class Stream(NamedTuple):
    """The batches of one pass over a client's examples.

    Args:
        batches: The examples of each batch.
        seed: Seeds the processes that read them.
    """

    batches: list[list[int]]
    seed: int


class BatchReader:
    """Reads the batches of one stream after another.

    Without processes a batch is read when it is asked for. Otherwise they are started once, for all
    streams, read ahead within a stream and, of the streams that are expected, beyond its end. Each
    stream has the random numbers that processes of its own would have, so that its batches do not
    depend on what else is read.

    The processes belong to a ``DataLoader`` whose sampler never ends: where there is nothing to
    read it asks for nothing, and gets it at once. So they serve any number of streams, interrupted
    and nested ones too, through torch's public interface.

    Args:
        read: Makes a batch of the examples of some indices; must not raise.
        num_workers: Number of processes; 0 reads here.

    Example:
        >>> reader = BatchReader(lambda rows: [10 * row for row in rows], num_workers=0)
        >>> list(reader.batches(Stream([[3, 1], [2]], seed=0)))
        [[30, 10], [20]]
    """

    def __init__(self, read: Callable[[Rows], Any], num_workers: int) -> None:
        self._read = read
        self._num_workers = num_workers
        self._shared: _Shared | None = None

    def batches(self, stream: Stream) -> Iterator[Any]:
        """Yield the batches of a stream.

        Raises:
            RuntimeError: A process has died.
        """
        if not self._num_workers:
            return map(self._read, stream.batches)
        return self._processes().batches(stream)

    def expect(self, streams: Iterable[Stream]) -> None:
        """Say which streams will be asked for next; they may be cut short, or left out."""
        if self._num_workers:
            self._processes().expect(streams)

    def close(self) -> None:
        """End the processes; the next stream starts new ones."""
        if self._shared is not None and self._shared.process == os.getpid():
            self._shared.close()
            self._shared = None

    def _processes(self) -> _Shared:
        if self._shared is not None and self._shared.process != os.getpid():
            # Made before a fork: the processes answer the parent, and are the parent's to end.
            _others.append(self._shared)
            self._shared = None
        if self._shared is None or self._shared.lost:
            self._shared = _Shared(self._read, self._num_workers)
        return self._shared

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shared": None}


class _Request(NamedTuple):
    """One batch of a stream.

    Args:
        stream: Number of the stream.
        rows: The examples.
        seed: Seed of the stream.
        place: Which of the processes it would be read by, if the stream had its own.
        last: Whether that one would not read any more of the stream.
    """

    stream: int
    rows: list[int]
    seed: int
    place: int
    last: bool


class _Open:
    """A stream that is being read: how much of it was sent, and what has come back."""

    def __init__(self, number: int, stream: Stream) -> None:
        self.number = number
        self.stream = stream
        self.sent = 0
        self.taken = 0
        self.first = 0  # the process that has its first batch
        self.received: deque[Any] = deque()

    @property
    def ahead(self) -> int:
        """How many of its batches were asked for and not yet handed on."""
        return self.sent - self.taken


class _Shared:
    """The processes, and the streams that they read."""

    def __init__(self, read: Callable[[Rows], Any], num_workers: int) -> None:
        self.process = os.getpid()
        self.lost = False
        self._num_workers = num_workers
        self._most_ahead = _PREFETCH * num_workers
        self._sent = 0
        self._streams = 0
        self._open: dict[int, _Open] = {}
        self._active: _Open | None = None
        self._next: deque[_Open] = deque()
        self._expected: Iterator[Stream] = iter(())
        loader: DataLoader[Any] = DataLoader(
            _Served(read),
            batch_sampler=_Endless(self._request),  # type: ignore[arg-type]  # yields requests
            num_workers=num_workers,
            collate_fn=_as_it_is,
            prefetch_factor=_PREFETCH,
            # Without one the loader would draw from the global generator.
            generator=torch.Generator(),
        )
        self._answers = iter(loader)

    def batches(self, stream: Stream) -> Iterator[Any]:
        reading = self._start(stream)
        try:
            for _ in stream.batches:
                while not reading.received:
                    self._active = reading
                    self._receive()
                reading.taken += 1
                yield reading.received.popleft()
        finally:
            self._open.pop(reading.number, None)
            if self._active is reading:
                self._active = None

    def expect(self, streams: Iterable[Stream]) -> None:
        for forgotten in self._next:
            self._open.pop(forgotten.number, None)
        self._next.clear()
        self._expected = iter(streams)

    def close(self) -> None:
        self.lost = True
        self._open.clear()
        del self._answers

    def _start(self, stream: Stream) -> _Open:
        """Return the stream, begun already if it was expected next."""
        if not self._next:
            self._look_ahead()
        for place, candidate in enumerate(self._next):
            if candidate.stream == stream:
                for _ in range(place):  # those before it were left out
                    self._open.pop(self._next.popleft().number, None)
                return self._next.popleft()
        return self._opened(stream)

    def _opened(self, stream: Stream) -> _Open:
        self._streams += 1
        self._open[self._streams] = opened = _Open(self._streams, stream)
        return opened

    def _receive(self) -> None:
        """Take one answer from the processes and file it under its stream."""
        try:
            answer = next(self._answers)
        except BaseException:
            self.lost = True
            raise
        if answer is not None and answer[0] in self._open:
            self._open[answer[0]].received.append(answer[1])

    def _request(self) -> _Request | None:
        """Return what the next process in turn reads; None for nothing."""
        workers = self._num_workers
        process, self._sent = self._sent % workers, self._sent + 1
        reading = self._unsent()
        if reading is None:
            return None
        number, batches = reading.sent, reading.stream.batches
        if number == 0:
            reading.first = process
        place = number % workers
        if (reading.first + place) % workers != process:  # resumed after another stream
            return None
        reading.sent += 1
        last = number + workers >= len(batches)
        return _Request(reading.number, batches[number], reading.stream.seed, place, last)

    def _unsent(self) -> _Open | None:
        """Return the stream to read from: the one in use, then those that are expected."""
        if self._active is not None and self._active.sent < len(self._active.stream.batches):
            return self._active
        if sum(stream.ahead for stream in self._next) >= self._most_ahead:
            return None
        for reading in self._next:
            if reading.sent < len(reading.stream.batches):
                return reading
        coming = self._look_ahead()
        return coming if coming is not None and coming.stream.batches else None

    def _look_ahead(self) -> _Open | None:
        """Return the next of the streams that are expected."""
        stream = next(self._expected, None)
        if stream is None:
            return None
        self._next.append(self._opened(stream))
        return self._next[-1]


class _Endless:
    """A sampler of batches that never ends."""

    def __init__(self, request: Callable[[], _Request | None]) -> None:
        self._request = request

    def __iter__(self) -> Iterator[_Request | None]:
        while True:
            yield self._request()


class _Served(Dataset[Any]):
    """Answers requests in a process."""

    def __init__(self, read: Callable[[Rows], Any]) -> None:
        self._read = read
        self._now: int | None = None
        self._states: OrderedDict[int, tuple[Any, ...]] = OrderedDict()

    def __getitems__(self, request: _Request | None) -> Any:
        if request is None:
            return None
        self._continue(request)
        return request.stream, self._read(request.rows)

    def _continue(self, request: _Request) -> None:
        """Set the random generators to where the stream's last batch in this process left them."""
        if request.stream != self._now:
            if self._now is not None:
                generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
                self._states[self._now] = generators
                if len(self._states) > _REMEMBERED:
                    self._states.popitem(last=False)
            states = self._states.pop(request.stream, None)
            if states is None:
                _seed(request.seed, request.place)
            else:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])
        self._now = None if request.last else request.stream


def _seed(seed: int, worker: int) -> None:
    """Seed the generators as torch does in a process of a ``DataLoader``."""
    random.seed(seed + worker)
    torch.default_generator.manual_seed(seed + worker)
    entropy = [worker, seed & 0xFFFFFFFF, seed >> 32, 0]
    np.random.seed(np.random.SeedSequence(entropy).generate_state(4))


def _as_it_is(batch: Any) -> Any:
    return batch


_others: list[Any] = []
"""The processes of a parent process: to forget them would end them."""
