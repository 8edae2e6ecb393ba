"""Exact sums, against rational numbers; the same bits in every order and grouping."""

from __future__ import annotations

import math
import threading
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlightning.core.exact_sum import ExactSums

floats = st.floats(-(2.0**100), 2.0**100, width=32)
terms = st.lists(
    st.tuples(st.lists(floats, min_size=3, max_size=3), st.integers(1, 100_000)),
    min_size=1,
    max_size=12,
)


def total(pairs, times: float = 1.0) -> Tensor:
    sums = ExactSums()
    for values, weight in pairs:
        sums.add({"w": torch.tensor(values)}, weight * times)
    return sums.result()["w"]


def combined(groups) -> list[Tensor]:
    """Return the sum as each of several processes, here threads, has it."""
    meet = threading.Barrier(len(groups))
    said: list[object] = [None] * len(groups)
    results: list[Tensor] = [torch.empty(0)] * len(groups)

    def exchange(rank, value):
        said[rank] = value
        meet.wait()
        everyone = list(said)
        meet.wait()
        return everyone

    def work(rank, pairs):
        part = ExactSums()
        for values, weight in pairs:
            part.add({"w": torch.tensor(values)}, weight)

        def add_up(flat):
            others = exchange(rank, flat.clone())
            flat.copy_(torch.stack(others[rank:] + others[:rank]).sum(dim=0))

        part.combine(lambda value: exchange(rank, value), add_up)
        results[rank] = part.result()["w"]

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(groups)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@given(terms, st.randoms())
@settings(max_examples=80, deadline=None)
def test_any_order_has_the_same_bits(pairs, rng):
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    assert torch.equal(total(pairs), total(shuffled))


@given(terms, st.integers(1, 4), st.randoms())
@settings(max_examples=30, deadline=None)
def test_any_grouping_has_the_same_bits(pairs, number, rng):
    groups: list[list[object]] = [[] for _ in range(number)]
    for pair in pairs:
        rng.choice(groups).append(pair)
    whole = total(pairs)
    for part in combined(groups):
        assert torch.equal(part, whole)


@given(terms)
@settings(max_examples=80, deadline=None)
def test_it_is_the_exact_sum_to_96_bits_below_the_largest_term_rounded_once(pairs):
    largest = max(abs(Fraction(v)) * weight for values, weight in pairs for v in map(_as32, values))
    found = total(pairs)
    for place in range(3):
        exact = sum(Fraction(_as32(values[place])) * weight for values, weight in pairs)
        error = abs(Fraction(float(found[place])) - exact)
        assert error <= abs(exact) * Fraction(2, 2**53) + len(pairs) * largest / 2**95


def _as32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def test_terms_that_cancel_leave_what_is_between_them():
    values = [[1e12, 1.0, -3.0], [1.0, 1e-9, 3.0], [-1e12, -1.0, 1e-30]]
    found = total([(value, 1) for value in values])
    assert found[0] == 1.0
    assert found[1] == float(torch.tensor(1e-9))
    assert found[2] == 0.0  # 1e-30 is 140 bits below the tensor's largest term


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(bad):
    assert not total([([1.0, bad, 2.0], 1), ([1.0, 1.0, 1.0], 2)])[1].isfinite()
    assert not total([([1.0, 1.0, 1.0], 2), ([1.0, bad, 2.0], 1)])[1].isfinite()


def test_zeros_and_nothing_are_sums_too():
    assert torch.equal(total([([0.0, -0.0, 0.0], 3)]), torch.zeros(3, dtype=torch.float64))
    sums = ExactSums()
    sums.add({"w": torch.empty(0)}, 1.0)
    assert sums.result()["w"].shape == (0,)


def test_a_million_terms_are_the_most():
    sums = ExactSums()
    sums._terms = 1 << 20
    with pytest.raises(OverflowError):
        sums.add({"w": torch.ones(1)}, 1.0)
