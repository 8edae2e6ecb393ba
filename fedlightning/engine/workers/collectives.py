"""Several processes train one cohort; the result is that of one process, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from fedlightning.core.state import State
from fedlightning.engine.workers.watchdog import Watchdog
from fedlightning.errors import FederationError

__all__ = ["Counters", "Workers", "longest_first"]

T = TypeVar("T")


class Counters(Protocol):
    """What processes count in together; a store of ``torch.distributed`` is one."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which starts at 0, and return its value."""


class Workers:
    """The processes that share a cohort, and what they tell each other.

    Args:
        rank: This process.
        size: Number of processes; with one, nothing is ever sent.
        watchdog: Knows which of the others are lost.
        counters: Where processes of unequal speed count together.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        watchdog: Watchdog | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._watchdog = watchdog
        self._counters = counters

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Workers:
        """Return a trainer's processes."""
        watchdog = getattr(trainer.strategy, "watchdog", None)
        counters = getattr(trainer.strategy, "counters", None)
        return cls(trainer.global_rank, trainer.world_size, watchdog, counters)

    def counter(self, name: str) -> Callable[[], int] | None:
        """Return a function that gives each number from 0 on to one process only.

        Args:
            name: The same on all processes, and never used before.

        Returns:
            ``None`` where processes are equally fast, so that nothing has to be dealt out.
        """
        store = self._counters
        return None if store is None else lambda: store.add(name, 1) - 1

    def owns(self, index: int) -> bool:
        """Whether this process does the task ``index`` where tasks are dealt out in turn."""
        return index % self.size == self.rank

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank.

        Args:
            value: Something small that can be pickled; it comes from our own processes only.
        """
        if self.size == 1:
            return [value]
        self._meet()
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_rank_0(self, value: T) -> T:
        """Return rank 0's value on every process; something small, as for :meth:`gather`."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def _meet(self) -> None:
        """Wait for the other workers; unlike a collective, signals and failures interrupt it."""
        arrived, pause = dist.barrier(async_op=True), 1e-4
        while arrived is not None and not arrived.is_completed():
            time.sleep(pause)
            pause = min(1.5 * pause, 5e-3)
            self.check()
        if arrived is not None:
            arrived.wait()

    def check(self) -> None:
        """Raise if another process is lost.

        Raises:
            WorkerLost: If one is, and the run cannot go on.
        """
        if self._watchdog is not None:
            self._watchdog.check()

    def announce(self, client: int | None, round_index: int) -> None:
        """Let the others know of the client at work, should this process die."""
        if self._watchdog is not None:
            self._watchdog.announce(client, round_index)

    def agree(self, failure: Exception | None) -> None:
        """Raise on every process if one has failed, so that none waits for it forever.

        Args:
            failure: What went wrong on this process, if anything.

        Raises:
            FederationError: If another process has failed; this one raises its own ``failure``.
        """
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        for rank, text in enumerate(self.gather(told)):
            if text is not None and failure is not None:
                raise failure
            if text is not None:
                raise FederationError(f"worker {rank} failed: {text}")

    def send(self, state: State | None, like: Mapping[str, Tensor], owner: int) -> State:
        """Return the owner's state on every process.

        Args:
            state: The state, on the process that owns it.
            like: Tensors of the same keys, shapes, dtypes and device.
            owner: Rank of the process that has it.
        """
        # sparse tensors are the server's own: every process has them
        received: State = {k: value for k, value in like.items() if value.layout != torch.strided}
        dense = {key: value for key, value in like.items() if key not in received}
        for dtype in dict.fromkeys(value.dtype for value in dense.values()):
            keys = [key for key, value in dense.items() if value.dtype is dtype]
            source = state if state is not None else like
            flat = torch.cat([source[key].reshape(-1).to(like[key].device) for key in keys])
            dist.broadcast(flat, src=owner)
            pieces = torch.split(flat, [like[key].numel() for key in keys])
            received |= {
                key: piece.view_as(like[key]) for key, piece in zip(keys, pieces, strict=True)
            }
        return received


def longest_first(sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Deal tasks to workers: the longest task first, each to the worker with the least work so far.

    Args:
        sizes: How long each task takes, in any unit.
        workers: Number of workers.

    Returns:
        The tasks of each worker, in their own order; together all of them, once.

    Example:
        >>> longest_first([5, 1, 4, 2], workers=2)
        [[0, 1], [2, 3]]
        >>> longest_first([3, 3], workers=3)
        [[0], [1], []]
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for task in sorted(range(len(sizes)), key=lambda task: -sizes[task]):
        worker = loads.index(min(loads))
        shares[worker].append(task)
        loads[worker] += sizes[task]
    return [sorted(share) for share in shares]
