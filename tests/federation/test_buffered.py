"""Plans of `Buffered` and `Cyclic` beside a simulation that looks at all events at every moment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fedlightning import IFCA, FedAvg, FedDyn
from fedlightning.algorithms.aggregation import Krum
from fedlightning.errors import ConfigError
from fedlightning.federation import Buffered, Cyclic, Exponential, LogNormal, Synchronous, Windows
from fedlightning.federation.delays import ConstantDelay, delays_of
from fedlightning.federation.job_queue import JobQueue
from fedlightning.federation.jobs import Job, Population, ScheduleState
from fedlightning.federation.sampling import FixedCohorts, UniformSampler, choose
from fedlightning.federation.settings import Federation
from fedlightning.federation.staleness import weighting_of
from tests.toys import fit, net


def population(clients=range(4), cohort: int | None = None, seed: int = 0) -> Population:
    clients = list(clients) if not isinstance(clients, range) else clients
    size = len(clients) if cohort is None else cohort

    def draw(commit, number, again):
        from fedlightning.core.seeding import Key

        key = Key(seed, "cohort", round=commit, epoch=again)
        return choose(UniformSampler(), key, clients[-1] + 1, number, clients)

    return Population(
        seed, clients, size, lambda commit: draw(commit, size, 0), lambda client: 10, draw
    )


def plan(schedule, commits: int, clients: Population | None = None):
    clients = clients or population()
    state, planned = schedule.start(clients), []
    for _ in range(commits):
        jobs, state = schedule.next(state, clients)
        planned.append((list(jobs), state))
    return planned


def simulate(seconds, clients, buffer, commits, max_staleness=None, lost=lambda c, n: False):
    """Return (time, client, version, turn) of each commit's updates: all clients, one by one."""
    version, now = 0, 0.0
    running = {c: (seconds(c, 0), 0, 0) for c in clients}  # arrival, version, turn
    result, arrived = [], []
    while len(result) < commits:
        now = min(arrival for arrival, _, _ in running.values())
        again = []
        for client in sorted(c for c in clients if running[c][0] == now):
            _, read, turn = running[client]
            again.append((client, turn + 1))
            if lost(client, turn):
                continue
            if max_staleness is not None and version - read > max_staleness:
                continue
            arrived.append((now, client, read, turn))
            if len(arrived) == buffer:
                result.append(sorted(arrived))
                arrived, version = [], version + 1
        for client, turn in again:  # only now do they read
            running[client] = (now + seconds(client, turn), version, turn)
    return result[:commits]


def as_simulated(planned):
    return [sorted((j.time, j.client, j.version, j.stream) for j in jobs) for jobs, _ in planned]


@pytest.mark.parametrize("buffer", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("stalest", [None, 0, 3])
@pytest.mark.parametrize("kind", ["integers", "exponential", "lost"])
def test_a_plan_is_what_happens(buffer, stalest, kind):
    rng = random.Random(buffer)
    delays = {
        "integers": delays_of([float(rng.randint(1, 4)) for _ in range(5)]),  # many ties
        "exponential": Exponential([1.0, 5.0]),
        "lost": ConstantDelay(1.0, dropout=0.3),
    }[kind]
    clients = population(range(5))
    schedule = Buffered(buffer, delays, stalest)
    expected = simulate(
        lambda c, n: delays.seconds(clients.turn(c, n)), range(5), buffer, 40, stalest,
        lambda c, n: delays.is_lost(clients.turn(c, n)),
    )  # fmt: skip
    planned = plan(schedule, 40, clients)
    assert as_simulated(planned) == expected
    assert [state.time for _, state in planned] == [commit[-1][0] for commit in expected]
    assert [state.commit for _, state in planned] == list(range(1, 41))


def test_the_events_of_two_clients_by_hand():
    planned = plan(Buffered(1, [1.0, 3.0]), 6, population(range(2)))
    events = [(j.time, j.client, j.version, at - j.version) for at, ([j], _) in enumerate(planned)]
    assert events == [
        (1.0, 0, 0, 0), (2.0, 0, 1, 0), (3.0, 0, 2, 0), (3.0, 1, 0, 3), (4.0, 0, 4, 0),
        (5.0, 0, 5, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("cohort", [None, 3])
def test_equal_delays_and_a_full_buffer_plan_rounds(cohort):
    clients = population(range(7), cohort)
    size = clients.cohort_size
    rounds = plan(Synchronous(2.0), 6, clients)
    asynchronous = plan(Buffered(size, 2.0), 6, clients)

    def facts(planned):
        return [[(j.client, j.version, j.position, j.time, j.stream) for j in jobs] for jobs, _ in
                planned]  # fmt: skip

    assert facts(asynchronous) == facts(rounds)


def test_without_one_client_the_turns_of_all_others_stay():
    delays = LogNormal(2.0, 1.0, dropout=0.2, windows=Windows(0.6, 5.0))

    def turns(clients):
        found = {}
        for jobs, _ in plan(Buffered(2, delays), 60, population(clients)):
            for job in jobs:
                found.setdefault(job.client, {})[job.stream] = (job.start, job.time)
        return found

    whole, without = turns([0, 1, 2, 3, 4]), turns([0, 1, 3, 4])
    assert 2 not in without
    for client, times in without.items():
        common = whole[client].keys() & times.keys()
        assert len(common) > 10
        assert all(whole[client][turn] == times[turn] for turn in common)


def test_a_smaller_cohort_is_always_at_work_and_nobody_twice_at_once():
    clients = population(range(50), cohort=6)
    schedule = Buffered(2, Exponential(1.0))
    seen = set()
    for jobs, state in plan(schedule, 200, clients):
        under_way = [job.client for job in state.pending if job.client >= 0]
        assert len(state.pending) == 6
        assert len(set(under_way)) == len(under_way)
        seen |= {job.client for job in jobs}
        assert len({(job.client, job.stream) for job in jobs}) == len(jobs)
    assert len(seen) == 50


def test_a_stream_of_random_numbers_is_used_once():
    clients = population(range(6), cohort=3)
    used = [
        (job.client, job.stream)
        for jobs, _ in plan(Buffered(4, [0.1, 5.0, 5.0]), 100, clients) for job in jobs
    ]  # fmt: skip
    assert len(set(used)) == len(used)


def test_clients_read_the_model_when_their_window_opens():
    windows = Windows(0.3, 10.0)
    clients = population(range(8))
    planned = plan(Buffered(1, ConstantDelay(1.0, windows=windows)), 80, clients)
    commits = [state.time for _, state in planned]
    for jobs, _ in planned:
        for job in jobs:
            turn = clients.turn(job.client, 0)
            assert windows.opening(turn, job.start) == job.start
            # the version that it has read is the number of commits until then
            assert job.version == sum(moment <= job.start for moment in commits)
    starts = [job.start for jobs, _ in planned for job in jobs]
    assert len(set(starts)) > 20


def test_any_state_can_be_gone_on_from_again():
    clients, schedule = population(range(9), cohort=4), Buffered(2, Exponential(1.0))
    state = schedule.start(clients)
    for _ in range(5):
        _, state = schedule.next(state, clients)
    saved = ScheduleState.from_dict(state.state_dict())
    first, then = schedule.next(state, clients)
    for _ in range(3):
        schedule.next(then, clients)
    again, after = schedule.next(state, clients)
    assert list(first) == list(again)
    assert list(after.pending) == list(then.pending)
    loaded, later = schedule.next(saved, clients)
    assert list(loaded) == list(first)
    assert list(later.pending) == list(then.pending)


def test_a_queue_is_in_order_whatever_is_added():
    rng, queue, model = random.Random(0), JobQueue(), []
    for _ in range(2000):
        if model and rng.random() < 0.45:
            job, queue = queue.pop()
            best = min(model, key=lambda j: (j.time, j.waits, j.client, j.position))
            assert job == best
            model.remove(best)
        else:
            new = Job(rng.randrange(9), rng.choice([-1, 2]), rng.randrange(5), rng.randrange(9) / 4)
            queue, model = queue.push(new), [*model, new]
        assert len(queue) == len(model)
    assert list(queue) == sorted(model, key=lambda j: (j.time, j.waits, j.client, j.position))
    with pytest.raises(IndexError, match="empty"):
        JobQueue().pop()


class Crowd(Sequence):
    """A million clients that cannot be looked at one after another."""

    def __len__(self):
        return 1_000_000

    def __getitem__(self, place):
        return range(1_000_000)[place]

    def __iter__(self):
        raise AssertionError("all clients are looked at")

    __contains__ = __iter__


@pytest.mark.parametrize("schedule", [Buffered(1, Exponential(1.0)), Cyclic("shuffled")])
def test_planning_does_not_look_at_all_clients(schedule):
    drawn = population(range(1_000_000), cohort=100)
    clients = replace(drawn, clients=Crowd())
    planned = plan(schedule, 300, clients)
    assert len({job.client for jobs, _ in planned for job in jobs}) > 250


def test_a_commit_looks_at_the_clients_at_work_once(monkeypatch):
    looks, look = [], JobQueue.clients
    monkeypatch.setattr(JobQueue, "clients", lambda queue: looks.append(len(queue)) or look(queue))
    monkeypatch.setattr(JobQueue, "__iter__", lambda queue: pytest.fail("they are sorted"))
    clients = population(range(1_000_000), cohort=500)
    schedule = Buffered(20, Exponential(1.0))
    state = schedule.start(clients)
    for _ in range(5):
        _, state = schedule.next(state, clients)
    assert len(looks) <= 5


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("polynomial", [1, 2**-0.5, 3**-0.5, 0.5]),
        ("hinge", [1, 1, 1, 1]),
    ],
)
def test_weights_by_name(weighting, expected):
    assert [Buffered(weighting=weighting).weight(s) for s in range(4)] == pytest.approx(expected)


def test_the_hinge_falls_after_its_bend():
    weight = weighting_of("hinge").weight
    assert [weight(s) for s in (4, 5, 6)] == [1.0, 1 / 11, 1 / 21]


def test_a_cycle_is_all_clients_once_and_the_next_one_another_order():
    planned = plan(Cyclic("shuffled"), 12, population(range(4)))
    order = [job.client for jobs, _ in planned for job in jobs]
    cycles = [order[at : at + 4] for at in (0, 4, 8)]
    assert all(sorted(cycle) == [0, 1, 2, 3] for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) > 1
    assert all(job.version == at for at, ([job], _) in enumerate(planned))
    assert [j.client for js, _ in plan(Cyclic(), 6) for j in js] == [0, 1, 2, 3, 0, 1]
    assert [j.client for js, _ in plan(Cyclic([2, 0, 2]), 4) for j in js] == [2, 0, 2, 2]


def test_a_turn_of_a_cycle_that_is_lost_takes_its_time():
    delays = ConstantDelay(2.0, dropout=0.4)
    planned = plan(Cyclic(delays=delays), 20)
    lost = sum(state.counts["lost"] for _, state in planned)
    assert lost > 3
    assert planned[-1][1].time == 2.0 * (20 + lost)


def test_a_round_lasts_as_long_as_its_slowest_or_its_deadline():
    slow = [1.0, 2.0, 8.0, 4.0]
    ((jobs, after),) = plan(Synchronous(slow), 1)
    assert (len(jobs), after.time) == (4, 8.0)
    ((jobs, after),) = plan(Synchronous(slow, deadline=4.0), 1)
    assert (sorted(j.client for j in jobs), after.time, after.counts["late"]) == ([0, 1, 3], 4.0, 1)


def test_over_selection_waits_for_the_first_of_more():
    clients = population(range(20), cohort=4)
    times = [float(1 + client) for client in range(20)]
    for (jobs, after), (plain, _) in zip(
        plan(Synchronous(times, over_selection=2.0), 5, clients),
        plan(Synchronous(times), 5, clients), strict=True,
    ):  # fmt: skip
        assert len(jobs) == len(plain) == 4
        assert after.counts["spare"] == 4
    began = 0.0
    for jobs, after in plan(Synchronous(times, over_selection=2.0), 5, clients):
        assert after.time - began == max(times[job.client] for job in jobs)
        began = after.time


def test_what_a_buffer_can_hold_is_asked_of_the_buffer_and_not_of_the_cohort():
    rule = Krum(num_byzantine=1)  # five updates at least
    many = Federation(
        FedAvg(), cohort_size=2, aggregator=rule, min_clients=4, schedule=Buffered(5, 1.0)
    )
    assert many.min_clients == 4
    few = {"schedule": Buffered(3, 1.0)}
    with pytest.raises(
        ConfigError, match=r"= 5 clients a round, federation\.schedule\.buffer gives 3"
    ):
        fit(net(), FedAvg(), federation={**few, "aggregator": rule})
    with pytest.raises(
        ConfigError, match=r"min_clients=4 can never.*schedule\.buffer gives 3 updates"
    ):
        fit(net(), FedAvg(), federation={**few, "min_clients": 4})
    with pytest.raises(
        ConfigError, match=r"min_clients=2 can never.*Cyclic gives 1 update a round"
    ):
        fit(net(), FedAvg(), federation={"schedule": Cyclic(), "min_clients": 2})


def test_algorithms_that_stale_updates_would_falsify_are_refused():
    with pytest.raises(ConfigError, match=r"what they send in IFCA would take the place of newer"):
        Federation(IFCA(), schedule=Buffered())
    with pytest.raises(ConfigError, match=r"schedule\.weighting: in FedDyn.*set it to constant"):
        Federation(FedDyn(), schedule=Buffered(weighting="hinge"))
    for schedule in (Cyclic(), Synchronous(2.0)):
        chosen = Federation(IFCA(), schedule=schedule, optimizer_state="fresh")
        assert chosen.schedule is schedule
    assert Federation(FedDyn(), schedule=Buffered(3)).schedule.buffer == 3


def test_a_sampler_that_cannot_choose_more_clients_is_refused():
    few = {"sampler": FixedCohorts([[0, 1], [1, 2]]), "schedule": Synchronous(1.0, None, 1.5)}
    with pytest.raises(
        ConfigError, match=r"over_selection=1\.5 needs 3 clients a round.*chooses 2"
    ):
        fit(net(), FedAvg(), cohort=2, federation=few)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buffered(0), r"federation\.schedule\.buffer must be an integer >= 1, got 0"),
        (lambda: Buffered(max_staleness=-1), r"max_staleness.*got -1"),
        (lambda: Buffered(weighting="polynomal"), r"weighting.*Did you mean 'polynomial'"),
        (lambda: Synchronous(deadline=2.0), r"deadline=2\.0 needs delays"),
        (lambda: Synchronous(over_selection=1.5), r"over_selection=1\.5 needs delays"),
        (lambda: Cyclic("random"), r"order must be 'fixed' or 'shuffled'.*got 'random'"),
        (lambda: plan(Cyclic([7]), 1), r"order names client 7, which does not train"),
        (lambda: Federation(schedule=Buffered), r"federation\.schedule must be an instance"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
