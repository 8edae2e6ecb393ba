"""When clients train and when their updates are merged: planned without any training.

A client update is a function of the model's version, what the client keeps, its data and its
random stream. So a schedule, which sees none of these, can say which updates make the next commit.
It owns simulated time; the engine executes its plan in any order that gives the same result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedlightning.core.validation import Setting

__all__ = ["Job", "Population", "Schedule", "ScheduleState", "Synchronous"]


@dataclass(frozen=True)
class Job:
    """One client update of a plan.

    Args:
        client: Client id.
        version: The global model that it starts from: the number of commits behind it.
        position: Its place in the order of aggregation, within its commit.
        time: Simulated time of its arrival, in seconds.
        dispatch: Its number in the client's random streams; ``None`` means ``version``. A client
            that starts twice from one version needs two numbers, to draw anew.

    Example:
        >>> Job(client=3, version=7, position=0).stream
        7
    """

    client: int
    version: int
    position: int
    time: float = 0.0
    dispatch: int | None = None

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
    """

    commit: int = 0
    time: float = 0.0
    pending: tuple[Job, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers, texts, lists and dicts."""
        return {
            "commit": self.commit,
            "time": self.time,
            "pending": [
                [job.client, job.version, job.position, job.time, job.dispatch]
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
        cohort_size: ``federation.cohort_size`` as a number of clients.
        cohort: Returns the clients that the federation's sampler chooses for a commit.
        num_examples: Returns the number of a client's training examples.
    """

    seed: int
    clients: Sequence[int]
    cohort_size: int
    cohort: Callable[[int], tuple[int, ...]]
    num_examples: Callable[[int], int]


class Schedule(Setting, ABC):
    """Which client updates make the next commit; what ``federation.schedule`` takes.

    A schedule is pure: what it returns depends on its settings, its state and the population, and
    on no result of training. Its attributes are settings and nothing else.

    Attributes:
        sequential: Whether clients train one after another: a commit is one update, which starts
            from the newest model.
    """

    sequential: ClassVar[bool] = False

    def start(self, population: Population) -> ScheduleState:
        """Return the state before the first commit."""
        return ScheduleState()

    @abstractmethod
    def next(
        self, state: ScheduleState, population: Population
    ) -> tuple[Sequence[Job], ScheduleState]:
        """Return the updates of the next commit, in the order of aggregation, and the next state.

        Args:
            state: The state after the last commit.
            population: The clients.
        """

    def jobs_per_commit(self, population: Population) -> int:
        """Return how many updates a commit has, for progress bars and ``max_steps``."""
        return population.cohort_size


class Synchronous(Schedule):
    """Rounds: all clients of a cohort start from the newest model and are merged together.

    Example:
        >>> clients = Population(0, range(4), 2, cohort=lambda commit: (3, 1), num_examples=len)
        >>> jobs, state = Synchronous().next(ScheduleState(commit=5), clients)
        >>> [(job.client, job.version, job.position) for job in jobs], state.commit
        ([(3, 5, 0), (1, 5, 1)], 6)
    """

    def next(
        self, state: ScheduleState, population: Population
    ) -> tuple[Sequence[Job], ScheduleState]:
        """Return one update per client of the cohort."""
        cohort = population.cohort(state.commit)
        jobs = [
            Job(client, state.commit, position, state.time)
            for position, client in enumerate(cohort)
        ]
        return jobs, ScheduleState(state.commit + 1, state.time)
