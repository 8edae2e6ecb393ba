"""`Buffered`: clients train at their own speed, and the next arrivals make a commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedlightning.core.validation import check_integer
from fedlightning.federation.delays import Delays, delays_of
from fedlightning.federation.job_queue import JobQueue
from fedlightning.federation.jobs import WAITS, Job, Population, ScheduleState
from fedlightning.federation.schedule import Schedule
from fedlightning.federation.staleness import StalenessWeight, weighting_of

__all__ = ["Buffered"]

_NOBODY = -1
_AGAIN = 2**32


class Buffered(Schedule):
    """Asynchronous training: every ``buffer`` arrivals make a commit, each of its own version.

    As many clients as ``federation.cohort_size`` train at any time. With ``cohort_size: 1.0`` each
    client starts again as soon as its update has arrived; with fewer, the federation's sampler
    chooses who starts instead of it. An update that has started from an older model moves the
    newest one by what it has changed, times ``weighting`` of its staleness. Buffers, such as the
    statistics of BatchNorm, move by this share towards the client's own.

    Arrivals at one instant are handled in the order of client ids, and only then do clients read
    the model. Updates of one commit are merged in the order in which their clients have started. So
    a buffer of the cohort's size and equal delays are
    :class:`~fedlightning.federation.schedule.Synchronous`, bit for bit.

    ``buffer=1`` is FedAsync (Xie et al., 2019, arXiv 1903.03934) in its form with differences, a
    larger one FedBuff (Nguyen et al., AISTATS 2022, arXiv 2106.06639). Where all clients take part,
    the delays and the random numbers of a client depend on it and its own turn alone: without one
    of the clients, those of all others stay. With a smaller cohort they are named by the version
    that it reads, as in rounds.

    Args:
        buffer: Number of arrivals that make a commit.
        delays: Simulated seconds of an update: a number, a list with one for each client, or a
            model such as ``Exponential(2.0)``.
        max_staleness: An update that arrives with more commits behind its model is dropped, and its
            client starts again; ``None`` means that none is. Its training is not computed, so what
            the client keeps does not change either.
        weighting: Share of a stale update's change that counts: ``"constant"``, ``"polynomial"``,
            ``"hinge"``, or an object such as ``Polynomial(a=0.5)``.

    Example:
        >>> clients = Population(0, range(2), 2, lambda commit: (0, 1), num_examples=lambda c: 10)
        >>> schedule = Buffered(buffer=1, delays=[1.0, 3.0])
        >>> state = schedule.start(clients)
        >>> for _ in range(5):
        ...     (job,), state = schedule.next(state, clients)
        ...     print(job.time, job.client, job.version)
        1.0 0 0
        2.0 0 1
        3.0 0 2
        3.0 1 0
        4.0 0 4
    """

    size_given_by = "federation.schedule.buffer"
    stale = True

    def __init__(
        self,
        buffer: int = 1,
        delays: Delays | float | list[float] = 1.0,
        max_staleness: int | None = None,
        weighting: StalenessWeight | str = "constant",
    ) -> None:
        self.buffer = check_integer("federation.schedule.buffer", buffer, at_least=1)
        self.delays: Delays | float | list[float] = delays
        self.max_staleness = max_staleness
        self.weighting = weighting
        delays_of(delays)
        weighting_of(weighting)
        if max_staleness is not None:
            check_integer(
                "federation.schedule.max_staleness", max_staleness, at_least=0, other="null for any"
            )

    def weight(self, staleness: int) -> float:
        """Return the share of a stale update's change that counts."""
        return weighting_of(self.weighting).weight(staleness)

    def jobs_per_commit(self, population: Population) -> int:
        """Return the buffer's size."""
        return self.buffer

    def start(self, population: Population) -> ScheduleState:
        """Return the state in which all places are free."""
        places = range(population.cohort_size)
        return ScheduleState(pending=JobQueue(_place(place, 0.0) for place in places))

    def next(
        self, state: ScheduleState, population: Population
    ) -> tuple[Sequence[Job], ScheduleState]:
        """Return the next arrivals; the cost does not depend on how many clients there are."""
        plan = _Plan(
            self, delays_of(self.delays), population, state.commit, JobQueue.of(state.pending)
        )
        while len(plan.arrived) < self.buffer:
            plan.advance()
        now = plan.arrived[-1].time
        merged = sorted(plan.arrived, key=lambda job: (job.version, job.position))
        jobs = [replace(job, position=place) for place, job in enumerate(merged)]
        after = ScheduleState(state.commit + 1, now, plan.queue, counts=dict(plan.counts))
        return jobs, after


@dataclass
class _Plan:
    """The events until a commit.

    Args:
        schedule: The schedule.
        delays: Its model of delays.
        population: The clients.
        version: The newest model.
        queue: The updates under way.
        arrived: Those that will be merged.
        counts: What became of others.
        started: How often each client has started from the newest model.
        busy: The clients under way, where somebody has asked for them.
    """

    schedule: Buffered
    delays: Delays
    population: Population
    version: int
    queue: JobQueue
    arrived: list[Job] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(lost=0, stale=0))
    started: Counter[int] = field(default_factory=Counter)
    busy: set[int] | None = None

    def advance(self) -> None:
        """Handle the next event: an arrival, or all starts of one instant."""
        job, self.queue = self.queue.pop()
        if job.waits:
            self._start_all(job)
            return
        if self.busy is not None:
            self.busy.discard(job.client)
        stalest = self.schedule.max_staleness
        if self.delays.is_lost(self.population.turn(job.client, job.stream)):
            self.counts["lost"] += 1
        elif stalest is not None and self.version - job.version > stalest:
            self.counts["stale"] += 1
        else:
            self.arrived.append(job)
        if self.population.all_train:  # it starts again itself
            again = Job(job.client, WAITS, job.position, job.time, job.stream + 1)
        else:
            again = _place(job.position, job.time)
        self.queue = self.queue.push(again)

    def _start_all(self, first: Job) -> None:
        """Have all clients read the model that are due at one instant."""
        now, due = first.time, [first]
        while (job := self.queue.first) is not None and job.time == now:
            _, self.queue = self.queue.pop()
            due.append(job)
        if not self.queue and all(
            job.client == _NOBODY or self.population.all_train for job in due
        ):
            self._start_cohort(now, due)
            return
        free = [job for job in due if job.client == _NOBODY]
        for job in due:
            if job.client != _NOBODY:
                self._start(job.client, job.position, now, job.dispatch)
        if free:
            if self.busy is None:  # a look at all of them, once in a commit
                self.busy = self.queue.clients()
            chosen = self.population.others(self.version, len(free), self.busy)
            for job, client in zip(free, chosen, strict=True):
                self._start(client, job.position, now)

    def _start_cohort(self, now: float, due: Sequence[Job]) -> None:
        """Have a cohort start, as in rounds, because nobody else is under way."""
        turns = {job.client: job.dispatch for job in due}
        for place, client in enumerate(self.population.cohort(self.version)):
            first = 0 if self.population.all_train else None
            self._start(client, place, now, turns.get(client, first))

    def _start(self, client: int, position: int, now: float, number: int | None = None) -> None:
        """Have a client read the newest model, at once or when it is available."""
        if number is None:
            number = self.version + _AGAIN * self.started[client]
        if self.busy is not None:
            self.busy.add(client)
        turn = self.population.turn(client, number)
        start = self.delays.start(turn, now)
        if start > now:
            later = number if self.population.all_train else None
            self.queue = self.queue.push(Job(client, WAITS, position, start, later))
            return
        self.started[client] += 1
        time = now + self.delays.seconds(turn)
        self.queue = self.queue.push(Job(client, self.version, position, time, number, now))


def _place(position: int, now: float) -> Job:
    """Return a place that is free: a client will be chosen for it."""
    return Job(_NOBODY, WAITS, position, now)
