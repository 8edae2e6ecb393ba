"""What a plan consists of: client updates, what is known between two commits, the clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlightning.federation.delays import Turn

__all__ = ["WAITS", "Job", "Population", "ScheduleState"]

WAITS = -1
"""The version of a job whose client has not read a model yet."""


@dataclass(frozen=True)
class Job:
    """One client update of a plan.

    Args:
        client: Client id.
        version: The global model that it starts from: the number of commits behind it.
            :data:`WAITS` where the client has not read a model yet.
        position: Its place in the order of aggregation, within its commit.
        time: Simulated time of its arrival, in seconds.
        dispatch: Its number in the client's random streams; ``None`` means ``version``. A client
            that starts twice from one version needs two numbers, to draw anew.
        start: Simulated time at which the client reads the model.

    Example:
        >>> Job(client=3, version=7, position=0).stream
        7
    """

    client: int
    version: int
    position: int
    time: float = 0.0
    dispatch: int | None = None
    start: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether the client has not read a model yet; it does so at ``time``."""
        return self.version == WAITS

    @property
    def stream(self) -> int:
        """The number that names the update's random streams."""
        return self.version if self.dispatch is None else self.dispatch


@dataclass(frozen=True)
class ScheduleState:
    """What a schedule knows between two commits.

    Args:
        commit: The number of commits so far, which is the version of the newest model.
        time: Simulated time of the newest commit, in seconds.
        pending: Updates under way: clients that have received a model and whose updates are part
            of no commit yet. The engine keeps the versions that they started from.
        extra: More of the schedule's own: numbers, texts, lists and dicts of them.
        counts: What became of updates that are in no commit, since the last one, by reason. They
            are logged, and not part of the state.
    """

    commit: int = 0
    time: float = 0.0
    pending: Sequence[Job] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict, compare=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers, texts, lists and dicts."""
        return {
            "commit": self.commit,
            "time": self.time,
            "pending": [
                [job.client, job.version, job.position, job.time, job.dispatch, job.start]
                for job in self.pending
            ],
            "extra": dict(self.extra),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ScheduleState:
        """Return the state that :meth:`state_dict` has written.

        Example:
            >>> state = ScheduleState(2, 1.5, (Job(0, 1, 0, 2.0),))
            >>> ScheduleState.from_dict(state.state_dict()) == state
            True
        """
        pending = tuple(Job(*entry) for entry in state["pending"])
        return cls(state["commit"], state["time"], pending, dict(state["extra"]))


@dataclass(frozen=True)
class Population:
    """What a schedule may know of the clients.

    Args:
        seed: The seed of the run.
        clients: The ids of those that take part in training, in ascending order.
        cohort_size: ``federation.cohort_size`` as a number of clients; the expected number, where
            cohorts have any size.
        cohort: Returns the clients that the federation's sampler chooses for a commit.
        num_examples: Returns the number of a client's training examples.
        sample: Returns so many clients that the federation's sampler chooses for a commit, where
            that is another number than the cohort's: ``sample(commit, size, again)``. Another
            ``again`` draws anew.
        sized: Whether every cohort has ``cohort_size`` clients.
    """

    seed: int
    clients: Sequence[int]
    cohort_size: int
    cohort: Callable[[int], tuple[int, ...]]
    num_examples: Callable[[int], int]
    sample: Callable[[int, int, int], tuple[int, ...]] | None = None
    sized: bool = True

    @property
    def all_train(self) -> bool:
        """Whether every client takes part at all times."""
        return self.sized and self.cohort_size >= len(self.clients)

    def turn(self, client: int, number: int) -> Turn:
        """Return one of a client's updates, as a model of delays knows it."""
        return Turn(self.seed, client, number, self.num_examples)

    def others(self, commit: int, size: int, busy: Collection[int]) -> list[int]:
        """Return some clients by the federation's sampler, none of whom is busy.

        Args:
            commit: The number of the commit.
            size: How many; there must be as many that are not busy.
            busy: Those that must not be chosen.
        """
        assert self.sample is not None, "a schedule that replaces single clients needs a sample"
        wanted, again = 2 * size + 4, 1
        while True:
            wanted = min(wanted, len(self.clients))
            drawn = self.sample(commit, wanted, again)
            free = [client for client in drawn if client not in busy]
            if len(free) >= size or wanted == len(self.clients):
                return free[:size]
            wanted, again = 2 * wanted, again + 1
