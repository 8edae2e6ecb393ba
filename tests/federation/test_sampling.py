"""Cohorts depend on seed and round alone."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy import stats

from fedlightning import FedAvg, Federation
from fedlightning.core.seeding import Key
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation import Buffered, Cyclic, Synchronous
from fedlightning.federation.jobs import Population, ScheduleState
from fedlightning.federation.sampling import (
    FixedCohorts,
    PoissonSampler,
    UniformSampler,
    cohort_count,
)
from tests.engine.test_resume import Stop, StopAt
from tests.toys import data, net, same, state, trainer


def cohort(seed: int, round_: int, size: int = 5, population: int = 50) -> tuple[int, ...]:
    return UniformSampler().cohort(Key(seed, "cohort", round=round_), population, size)


def test_the_same_seed_and_round_give_the_same_cohort():
    assert cohort(1, 2) == cohort(1, 2)


def test_another_seed_or_round_gives_another_cohort():
    assert len({cohort(seed, round_) for seed in range(4) for round_ in range(4)}) == 16


def test_no_client_is_chosen_twice():
    assert sorted(cohort(0, 0, size=50)) == list(range(50))


def test_a_cohort_of_a_million_clients_costs_what_the_cohort_does():
    tracemalloc.start()
    cohort(0, 0, size=50, population=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_fixed_cohorts_are_replayed():
    sampler = FixedCohorts([[2, 0], [1]])
    assert sampler.cohort(Key(0, "cohort", round=1), 3, 2) == (1,)
    with pytest.raises(ConfigError, match="no cohort for round 2"):
        sampler.cohort(Key(0, "cohort", round=2), 3, 2)
    with pytest.raises(ConfigError, match=r"not within 0\.\.1"):
        sampler.cohort(Key(0, "cohort", round=0), 2, 2)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (100, 100), (0.1, 10), (1.0, 100), (0.001, 1)])
def test_an_integer_counts_and_a_float_is_a_share(size, count):
    assert cohort_count(size, population=100) == count


@pytest.mark.parametrize("size", [0, -1, 101, 0.0, 1.5, -0.1, float("nan"), float("inf"), True])
def test_a_cohort_that_cannot_be_is_refused(size):
    with pytest.raises(ConfigError, match=r"federation\.cohort_size"):
        cohort_count(size, population=100)


def poisson(q: float, rounds: int, population: int, seed: int = 0) -> list[tuple[int, ...]]:
    sampler = PoissonSampler(q)
    return [sampler.cohort(Key(seed, "cohort", round=r), population, 0) for r in range(rounds)]


def check_bernoulli(draw=poisson) -> None:
    q, rounds, population = 0.15, 20_000, 8
    counts, pairs, cohorts = Counter(), Counter(), draw(q, rounds, population)
    for cohort in cohorts:
        assert len(set(cohort)) == len(cohort)
        counts.update(cohort)
        pairs.update(combinations(sorted(cohort), 2))
    for found, p in ((counts, q), (pairs, q * q)):  # clients, and independence of two of them
        expected = rounds * p
        chi = sum((n - expected) ** 2 / (expected * (1 - p)) for n in found.values())
        assert stats.chi2.sf(chi, len(found)) > 1e-3
    assert len(counts) == population
    assert len(pairs) == population * (population - 1) // 2
    sizes = Counter(len(cohort) for cohort in cohorts)
    wanted = [rounds * stats.binom.pmf(k, population, q) for k in range(4)]
    assert [sizes[k] for k in range(4)] == pytest.approx(wanted, rel=0.05)
    both = sum(0 in one and 0 in next_ for one, next_ in pairwise(cohorts))
    assert abs(both - rounds * q * q) < 5 * math.sqrt(rounds) * q  # rounds are independent, too


def test_inclusion_is_bernoulli_for_each_client_and_round():
    check_bernoulli()


def of_one_size(q, rounds, population):
    size = round(q * population)
    return [tuple(sorted(c)) for c in np.random.default_rng(0).permuted(
        np.tile(np.arange(population), (rounds, 1)), axis=1)[:, :size].tolist()]  # fmt: skip


def of_too_many(q, rounds, population):
    return poisson(1.1 * q, rounds, population)


def drawn_once_for_two_rounds(q, rounds, population):
    return [cohort for cohort in poisson(q, rounds // 2, population) for _ in range(2)]


@pytest.mark.parametrize("mutant", [of_one_size, of_too_many, drawn_once_for_two_rounds])
def test_mutants_that_draw_otherwise_are_found_out(mutant):
    with pytest.raises(AssertionError):
        check_bernoulli(mutant)


def test_a_poisson_cohort_of_a_million_clients_costs_what_the_cohort_does():
    tracemalloc.start()
    poisson(5e-5, 1, 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("q", [0, -0.1, 1.5, float("nan"), "half"])
def test_a_probability_that_cannot_be_is_refused(q):
    with pytest.raises(ConfigError, match=r"federation\.sampler\.q must be in \(0, 1\]"):
        PoissonSampler(q)


def test_cohort_size_and_sampler_must_agree():
    with pytest.raises(ConfigError, match=r"cohort_size=null needs a sampler"):
        Federation(cohort_size=None)
    with pytest.raises(ConfigError, match=r"cohort_size=0\.1: cohorts of PoissonSampler have any"):
        Federation(sampler=PoissonSampler(0.5))
    for schedule in (Buffered(buffer=2, delays=1.0), Synchronous(delays=1.0, over_selection=1.5)):
        with pytest.raises(ConfigError, match="needs cohorts of one size"):
            Federation(cohort_size=None, sampler=PoissonSampler(0.5), schedule=schedule)


EMPTY = [(), (2, 0), (), (1,), ()]


class AsGiven(PoissonSampler):
    """Cohorts of any size, written down."""

    def __init__(self, q, cohorts=EMPTY):
        super().__init__(q)
        self.cohorts = cohorts

    def cohort(self, key, population, size):
        return self.cohorts[key.round]


def given(rounds: int = 5, devices: int = 1, **settings):
    return trainer(
        settings.pop("algorithm", FedAvg()), rounds, None, settings.pop("folder", None),
        {"sampler": AsGiven(0.3), **settings.pop("federation", {})},
        devices=devices, **settings,
    )  # fmt: skip


def test_empty_rounds_change_nothing_and_weights_are_those_of_who_came():
    by_round = []

    class Look(pl.Callback):
        def on_aggregate_end(self, trainer, module):
            by_round.append(state(module))

    module = net()
    before = state(module)
    given(callbacks=[Look()]).fit(module, datamodule=data())
    assert same(by_round[0], before)
    assert same(by_round[2], by_round[1])
    assert same(by_round[4], by_round[3])
    alone = []
    for client in (2, 0):  # in round 1, each by itself; 7 and 8 examples
        alone.append(net())
        sampler = AsGiven(0.3, [(), (client,), (), (), ()])
        given(federation={"sampler": sampler}).fit(alone[-1], datamodule=data())
    one, other = map(state, alone)
    for key, value in by_round[1].items():
        mean = (7 * one[key].double() + 8 * other[key].double()) / 15
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, before[key])


def test_rounds_are_those_of_fixed_cohorts_of_the_same_clients():
    """Streams are named by round and client, so a cohort's size leaves no trace."""
    one, other = net(dropout=0.3), net(dropout=0.3)
    two = [(3, 1), (0, 2)]

    trainer(FedAvg(), 2, None, federation={"sampler": AsGiven(0.5, two)}).fit(
        one, datamodule=data()
    )
    trainer(FedAvg(), 2, 2, federation={"sampler": FixedCohorts(two)}).fit(other, datamodule=data())
    assert same(state(one), state(other))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_resumed_after_an_empty_round_is_the_uninterrupted_one(at, tmp_path):
    whole, again = net(dropout=0.3), net(dropout=0.3)
    given().fit(whole, datamodule=data())
    stopped = given(folder=tmp_path, callbacks=[StopAt("on_train_epoch_start", at)])
    with pytest.raises(Stop):
        stopped.fit(net(dropout=0.3), datamodule=data())
    given(folder=tmp_path).fit(again, datamodule=data(), ckpt_path="last")
    assert same(state(again), state(whole))
    (table,) = tmp_path.rglob("rounds.csv")
    rows = [row.split(",") for row in table.read_text().splitlines()]
    assert [row[rows[0].index("clients")] for row in rows[1:]] == ["0", "2", "0", "1", "0"]


def test_two_workers_agree_about_empty_cohorts():
    one, two = net(), net()
    given().fit(one, datamodule=data())
    given(devices=2, accelerator="cpu", strategy="ddp_fork").fit(two, datamodule=data())
    assert same(state(one), state(two))


def test_schedules_take_cohorts_of_any_size():
    clients = Population(0, range(4), 1, EMPTY.__getitem__, lambda _: 10, sized=False)
    schedule = Synchronous(delays=[1.0, 2.0, 3.0, 4.0], deadline=2.5)
    plan, after = [], ScheduleState()
    for _ in range(4):
        jobs, after = schedule.next(after, clients)
        plan.append(([job.client for job in jobs], after.time, after.counts["late"]))
    assert plan == [([], 0.0, 0), ([0], 2.5, 1), ([], 2.5, 0), ([1], 4.5, 0)]
    cyclic, after, order = Cyclic(), ScheduleState(), []
    for _ in range(3):
        (job,), after = cyclic.next(after, clients)
        order.append(job.client)
    assert order == [0, 2, 1]


def test_the_summary_says_about_how_many(tmp_path, capsys):
    given(2, folder=tmp_path).fit(net(), datamodule=data())
    assert "about 1 of 4 clients a round" in capsys.readouterr().out


def test_min_clients_counts_in_cohorts_that_have_as_many():
    def fails(module, batch, batch_idx):
        raise RuntimeError("no")

    module = net()
    module.training_step = fails.__get__(module)
    built = given(federation={"on_client_failure": "skip"})
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(FederationError, match=r"round 1: 0 of 2 clients succeeded"),
    ):
        built.fit(module, datamodule=data())
