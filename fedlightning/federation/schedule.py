"""When clients train and when their updates are merged: planned without any training.

A client update is a function of the model's version, what the client keeps, its data and its
random stream. So a schedule, which sees none of these, can say which updates make the next commit.
It owns simulated time; the engine executes its plan in any order that gives the same result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from fedlightning.core.validation import Setting, check_number
from fedlightning.errors import ConfigError
from fedlightning.federation.delays import Delays, delays_of
from fedlightning.federation.jobs import Job, Population, ScheduleState

__all__ = ["Job", "Population", "Schedule", "ScheduleState", "Synchronous"]


class Schedule(Setting, ABC):
    """Which client updates make the next commit; what ``federation.schedule`` takes.

    A schedule is pure: what it returns depends on its settings, its state and the population, and
    on no result of training. Its attributes are settings and nothing else.

    Attributes:
        sequential: Whether clients train one after another: a commit is one update, which starts
            from the newest model.
        size_given_by: The setting that says how many updates a commit has.
        stale: Whether clients may start from older models than the newest.
        delays: How many simulated seconds updates take; ``None`` means without a clock.
    """

    sequential: ClassVar[bool] = False
    size_given_by: ClassVar[str] = "federation.cohort_size"
    stale: ClassVar[bool] = False
    delays: Delays | float | list[float] | None = None

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
        """Return how many updates a commit has; an expectation, where cohorts have any size."""
        return population.cohort_size

    @property
    def any_cohort(self) -> bool:
        """Whether cohorts may have any size, as those of a ``PoissonSampler`` do."""
        return False

    @property
    def timed(self) -> bool:
        """Whether it has a clock: whether the times of its jobs mean anything."""
        return self.delays is not None

    def weight(self, staleness: int) -> float:
        """Return the share of an update's change that counts, so many commits after its start."""
        return 1.0

    def slowness(self, population: Population, client: int) -> float | None:
        """Return the typical simulated seconds of a client's updates; ``None`` without a clock."""
        if self.delays is None:
            return None
        return delays_of(self.delays).typical(population.turn(client, 0))

    def files(self) -> Sequence[Path]:
        """Return the files that it reads; a resumed run must find the same in them."""
        return self.delays.files() if isinstance(self.delays, Delays) else ()


class Synchronous(Schedule):
    """Rounds: all clients of a cohort start from the newest model and are merged together.

    With a model of delays it says how long the rounds would take, for any algorithm: a round lasts
    until its slowest update has arrived, or until its deadline. Delays alone change no bit of the
    result. Updates that are late, lost or not waited for are not merged.

    Args:
        delays: Simulated seconds of an update: a number, a list with one for each client, or a
            model such as ``LogNormal(2.0)``; ``None`` means without a clock.
        deadline: Simulated seconds after which a round ends with what has arrived; ``None`` means
            never.
        over_selection: How many times as many clients as ``federation.cohort_size`` start; the
            round ends with the first ``cohort_size`` of them (Bonawitz et al., *Towards Federated
            Learning at Scale*, MLSys 2019, start 1.3 times as many).

    Example:
        >>> clients = Population(0, range(4), 2, lambda commit: (3, 1), num_examples=lambda c: 10)
        >>> jobs, state = Synchronous(delays=[1, 2, 3, 4]).next(ScheduleState(commit=5), clients)
        >>> [(job.client, job.version, job.time) for job in jobs], state.commit, state.time
        ([(3, 5, 4.0), (1, 5, 2.0)], 6, 4.0)
        >>> jobs, state = Synchronous([1, 2, 3, 4], deadline=2.5).next(ScheduleState(), clients)
        >>> [job.client for job in jobs], state.time, state.counts["late"]
        ([1], 2.5, 1)
    """

    def __init__(
        self,
        delays: Delays | float | list[float] | None = None,
        deadline: float | None = None,
        over_selection: float = 1.0,
    ) -> None:
        self.delays = delays
        self.deadline = deadline
        self.over_selection = check_number("over_selection", over_selection, at_least=1)
        if delays is not None:
            delays_of(delays)
        elif deadline is not None or over_selection > 1:
            name = "deadline" if deadline is not None else "over_selection"
            raise ConfigError(
                f"federation.schedule: {name}={getattr(self, name)} needs delays, which say when "
                "an update arrives; set federation.schedule.delays."
            )
        if deadline is not None:
            check_number("deadline", deadline, above=0, unit="seconds", other="null for none")

    @property
    def any_cohort(self) -> bool:
        """Whether cohorts may have any size: yes, where nobody is started as a spare."""
        return self.over_selection == 1

    def next(
        self, state: ScheduleState, population: Population
    ) -> tuple[Sequence[Job], ScheduleState]:
        """Return one update per client of the cohort that arrives in time."""
        cohort = self._chosen(state.commit, population)
        wanted = population.cohort_size if population.sized else len(cohort)
        version, now = state.commit, state.time
        if self.delays is None:
            jobs = [Job(client, version, place, now) for place, client in enumerate(cohort)]
            return jobs, ScheduleState(version + 1, now)
        delays = delays_of(self.delays)
        end = math.inf if self.deadline is None else now + self.deadline
        arrived: list[Job] = []
        counts = {"lost": 0, "late": 0, "spare": 0}
        last = now
        for place, client in enumerate(cohort):
            turn = population.turn(client, version)
            start = delays.start(turn, now)
            time = start + delays.seconds(turn)
            if time > end:
                counts["late"] += 1
            elif delays.is_lost(turn):
                counts["lost"] += 1
                last = max(last, time)
            else:
                arrived.append(Job(client, version, place, time, start=start))
        in_time = sorted(arrived, key=lambda job: (job.time, job.position))
        jobs = sorted(in_time[:wanted], key=lambda job: job.position)
        counts["spare"] = len(arrived) - len(jobs)
        if counts["spare"] or len(jobs) == wanted:
            last = max((job.time for job in jobs), default=now)
        elif counts["late"]:
            last = end
        else:
            last = max([last, *(job.time for job in jobs)])
        jobs = [replace(job, position=place) for place, job in enumerate(jobs)]
        return jobs, ScheduleState(version + 1, last, counts=counts)

    def _chosen(self, commit: int, population: Population) -> Sequence[int]:
        """Return the clients that start."""
        size = min(math.ceil(population.cohort_size * self.over_selection), len(population.clients))
        if size <= population.cohort_size or population.sample is None:
            return population.cohort(commit)
        chosen = population.sample(commit, size, 0)
        if len(chosen) < size:
            raise ConfigError(
                f"federation.schedule.over_selection={self.over_selection} needs {size} clients a "
                f"round, federation.sampler chooses {len(chosen)}; set over_selection to 1."
            )
        return chosen
