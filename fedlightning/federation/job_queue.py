"""A queue of client updates by time that is never changed: a longer or shorter one is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fedlightning.federation.jobs import Job

__all__ = ["JobQueue"]

_Order = tuple[float, bool, int, int]


@dataclass(frozen=True, eq=False, slots=True)
class _Node:
    """A heap whose root is the least entry and whose left side is the deeper one."""

    order: _Order
    job: Job
    rank: int
    left: _Node | None
    right: _Node | None


class JobQueue(Sequence[Job]):
    """Client updates by time of arrival; at one instant, arrivals by client, then starts by client.

    Adding an update and leaving out the first cost the logarithm of the length, and leave the queue
    as it was: a schedule can go on from any of its states. (A leftist heap: Crane, 1972.)

    Args:
        jobs: The updates.

    Example:
        >>> queue = JobQueue([Job(0, 0, 0, time=3.0), Job(1, 0, 1, time=1.0)])
        >>> first, rest = queue.pop()
        >>> first.client, len(rest), len(queue), [job.client for job in rest.push(first)]
        (1, 1, 2, [1, 0])
    """

    __slots__ = ("_length", "_root")

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        nodes: list[_Node | None] = [_single(job) for job in jobs]
        self._length = len(nodes)
        while len(nodes) > 1:  # in pairs: linear in the number of updates
            pairs = [_merge(a, b) for a, b in zip(nodes[::2], nodes[1::2], strict=False)]
            nodes = pairs + (nodes[-1:] if len(nodes) % 2 else [])
        self._root = nodes[0] if nodes else None

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> JobQueue:
        """Return the queue of some updates; of a queue, itself."""
        return jobs if isinstance(jobs, cls) else cls(jobs)

    @property
    def first(self) -> Job | None:
        """The next update, if there is one."""
        return self._root.job if self._root is not None else None

    def push(self, job: Job) -> JobQueue:
        """Return the queue with one more."""
        return self._made(_merge(self._root, _single(job)), self._length + 1)

    def pop(self) -> tuple[Job, JobQueue]:
        """Return the first update and the queue without it.

        Raises:
            IndexError: The queue is empty.
        """
        root = self._root
        if root is None:
            raise IndexError("the queue is empty")
        return root.job, self._made(_merge(root.left, root.right), self._length - 1)

    def clients(self) -> set[int]:
        """Return the clients whose updates are in it."""
        return {job.client for job in self._unsorted()}

    @classmethod
    def _made(cls, root: _Node | None, length: int) -> JobQueue:
        queue = cls.__new__(cls)
        queue._root, queue._length = root, length
        return queue

    def __len__(self) -> int:
        """Return the number of updates."""
        return self._length

    def __iter__(self) -> Iterator[Job]:
        """Yield the updates in order."""
        return iter(sorted(self._unsorted(), key=_order_of))

    def __getitem__(self, index: int | slice) -> Job | list[Job]:  # type: ignore[override]
        """Return an update by its place."""
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same updates, in order."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the call that makes such a queue."""
        return f"JobQueue({list(self)!r})"

    def _unsorted(self) -> Iterator[Job]:
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node is not None:
                yield node.job
                stack += (node.left, node.right)


def _order_of(job: Job) -> _Order:
    return job.time, job.waits, job.client, job.position


def _single(job: Job) -> _Node:
    return _Node(_order_of(job), job, 1, None, None)


def _merge(a: _Node | None, b: _Node | None) -> _Node | None:
    if a is None or b is None:
        return b if a is None else a
    if b.order < a.order:
        a, b = b, a
    left, right = a.left, _merge(a.right, b)
    if left is None or (right is not None and right.rank > left.rank):
        left, right = right, left
    return _Node(a.order, a.job, 1 + (right.rank if right is not None else 0), left, right)
