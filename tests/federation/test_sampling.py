"""Cohorts depend on seed and round alone."""

from __future__ import annotations

import tracemalloc

import pytest

from fedlightning.core.seeding import Key
from fedlightning.errors import ConfigError
from fedlightning.federation.sampling import FixedCohorts, UniformSampler, cohort_count


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
