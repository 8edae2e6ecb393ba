"""Several processes train one cohort; the result is that of one process, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from fedlightning.errors import FederationError
from fedlightning.parts import State, live_state

__all__ = ["FederatedDDPStrategy", "Workers", "longest_first"]

T = TypeVar("T")


class FederatedDDPStrategy(DDPStrategy):
    """Lightning's ``ddp`` without its wrapper: every worker trains clients of its own.

    Gradients are never synchronised, because two workers never train the same client. All that is
    taken from ``ddp`` is the launching of processes and their process group.

    Args:
        num_threads: CPU threads of torch in each process; ``None`` leaves Lightning's choice.
        **kwargs: Arguments of DDPStrategy.
    """

    def __init__(self, num_threads: int | None = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._num_threads = num_threads

    def setup_environment(self) -> None:
        """Join the process group. Every rank logs the same numbers, so none has to be reduced."""
        warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
        super().setup_environment()
        if self._num_threads is not None:  # the launcher has set its own idea of it
            torch.set_num_threads(self._num_threads)

    def configure_ddp(self) -> None:
        """Start every worker from rank 0's weights; wrap nothing."""
        assert self.model is not None
        for tensor in live_state(self.model).values():
            dist.broadcast(tensor, src=0)


class Workers:
    """The processes that share a cohort, and what they tell each other.

    Args:
        rank: This process.
        size: Number of processes; with one, nothing is ever sent.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

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
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, failure: Exception | None) -> None:
        """Raise on every process if one has failed, so that none waits for another in vain.

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
        received: State = {}
        for dtype in dict.fromkeys(value.dtype for value in like.values()):
            keys = [key for key, value in like.items() if value.dtype is dtype]
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
