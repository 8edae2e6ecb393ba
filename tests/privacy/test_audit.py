"""An audit that can fail: a canary client in and out of a round, a thousand times each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("dp_accounting", reason="needs the extra dp")

from benchmarks.audit import lower_bounds
from fedlightning.core.messages import ClientUpdate
from fedlightning.privacy import (
    ClientDP,
    ClientMechanism,
    Cohorts,
    Release,
    epsilon_of,
)

C, M, RUNS, DELTA = 0.5, 3.0, 1000, 1e-5
START = {"w": torch.zeros(4)}


def audited(kind: type[ClientMechanism], z: float):
    """Return the bounds that a thousand rounds with a canary, and as many without, prove."""
    others = [ClientUpdate(c, {"w": torch.full((4,), 0.1 * c)}, 5) for c in (1, 2)]
    shouting = ClientUpdate(0, {"w": torch.tensor([1e12, 0.0, 0.0, 0.0])}, 5)
    values = {True: [], False: []}
    for seed in range(RUNS):
        for there, seen in values.items():
            made = kind(ClientDP(noise_multiplier=z, max_norm=C), z, M, seed=2 * seed + there)
            opened = made.open(made.start(), START, ["w"], {}, 0)
            for update in [shouting, *others] if there else others:
                opened.push(update)
            seen.append(float(opened.result()[0]["w"][0]))
    return lower_bounds(values[True], values[False], DELTA)


def claimed(z: float) -> float:
    return epsilon_of([Release(z, 1)], Cohorts("poisson", M, 3, q=1.0), DELTA)


def check(kind: type[ClientMechanism], z: float = 0.3) -> None:
    bounds = audited(kind, z)
    assert max(bounds.counted, bounds.fitted) <= claimed(z)
    assert bounds.fitted > claimed(z) / 2
    assert bounds.counted > math.log(RUNS / 2 / 3) / 2  # counting sees little of it, but something


def test_a_canary_proves_more_than_half_of_what_is_claimed_and_no_more_than_it():
    check(ClientMechanism)


def test_a_thousand_runs_prove_little_where_noise_is_large():
    bounds = audited(ClientMechanism, z=4.0)
    assert 0 < bounds.fitted <= claimed(4.0)


class HalfTheNoise(ClientMechanism):
    def std(self, max_norm):
        return super().std(max_norm) / 2


class TwiceAsFar(ClientMechanism):
    def open(self, *args):
        opened = super().open(*args)
        opened._max_norm *= 2
        std = self.std
        self.std = lambda norm: std(norm / 2)
        return opened


@pytest.mark.parametrize("mutant", [HalfTheNoise, TwiceAsFar])
def test_mutants_are_found_out(mutant):
    with pytest.raises(AssertionError):
        check(mutant)


def test_noise_that_is_too_large_is_found_out():
    class Louder(ClientMechanism):
        def std(self, max_norm):
            return 4 * super().std(max_norm)

    with pytest.raises(AssertionError):
        check(Louder)


def test_bounds_on_numbers_that_are_known():
    rng = np.random.default_rng(0)
    same = lower_bounds(rng.normal(size=2000), rng.normal(size=2000), DELTA)
    assert same.counted < 0.5
    assert same.fitted < 0.6
    far = lower_bounds(rng.normal(9, 1, 2000), rng.normal(0, 1, 2000), DELTA)
    assert far.counted == pytest.approx(math.log(0.9963 / 0.00368), abs=0.05)  # Clopper, Pearson
