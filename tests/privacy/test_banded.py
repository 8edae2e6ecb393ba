"""Correlated noise: the factorisation by dense matrices, turns that are apart, their cost."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fedlightning import ClientDP, FedBABU, Federation, PoissonSampler, SeparatedSampler
from fedlightning.core.seeding import Key
from fedlightning.errors import ConfigError
from fedlightning.privacy import (
    AdaptiveClipping,
    BandedNoise,
    ClientMechanism,
    Cohorts,
    Release,
    epsilon_of,
)
from tests.engine.test_resume import Stop, StopAt
from tests.toys import data, net, same, state, trainer

ROUNDS = 12


def strategy(bands: int, rounds: int = ROUNDS) -> np.ndarray:
    """Return C, by the definition of the square root of the matrix of prefix sums."""
    ones = np.tril(np.ones((rounds, rounds)))
    root = np.zeros((rounds, rounds))
    for i in range(rounds):  # the lower triangular Toeplitz root, coefficient by coefficient
        root[i, 0] = 1.0 if i == 0 else (1 - sum(root[j, 0] * root[i - j, 0] for j in range(1, i))
                                         ) / 2  # fmt: skip
    for i in range(1, rounds):
        root[i:, i] = root[: rounds - i, 0]
    np.testing.assert_allclose(root @ root, ones, atol=1e-12)
    banded = np.triu(np.tril(root), 1 - bands)
    return banded / np.linalg.norm(banded[:bands, 0])


def released(bands: int, rounds: int = ROUNDS, size: int = 3, z: float = 2.0) -> np.ndarray:
    """Return the noise that rounds without clients add, one row for each."""
    start = {"w": torch.zeros(size, dtype=torch.float64)}
    made = ClientMechanism(ClientDP(noise_multiplier=z, bands=bands), z, 1.0, seed=0)
    now, rows = made.start(), []
    for version in range(rounds):
        opened = made.open(now, start, ["w"], {}, version)
        model, _ = opened.result()
        rows.append(model["w"].numpy())
        now = {**now, **opened.after}
    return np.stack(rows)


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_the_noise_is_the_inverse_times_independent_noise(bands):
    fresh = released(1)
    np.testing.assert_allclose(strategy(bands) @ released(bands), fresh, atol=1e-10)
    np.testing.assert_allclose(BandedNoise(bands).coefficients, strategy(bands)[:bands, 0])


def test_turns_that_are_apart_cost_what_they_cost_one_by_one_and_nearer_ones_more():
    """The sensitivity by brute force: all patterns of turns, all signs."""
    bands, matrix = 3, strategy(3)

    def sensitivity(patterns) -> float:
        return max(
            float(np.linalg.norm(matrix[:, turns] @ np.array(signs)))
            for turns in patterns
            for signs in itertools.product((1.0, -1.0), repeat=len(turns))
        )

    apart = [list(range(first, ROUNDS, bands)) for first in range(bands)]
    turns = math.ceil(ROUNDS / bands)
    assert sensitivity(apart) == pytest.approx(math.sqrt(turns), abs=1e-9)
    near = [list(range(first, ROUNDS, bands - 1)) for first in range(bands - 1)]
    assert sensitivity(near) > math.sqrt(len(near[0])) + 0.1


def test_the_model_carries_less_noise_than_with_independent_noise():
    sums = np.tril(np.ones((ROUNDS, ROUNDS)))
    errors = [
        np.linalg.norm(sums @ np.linalg.inv(strategy(bands))) ** 2 / ROUNDS
        for bands in (1, 2, 4, ROUNDS)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
    drawn = released(4, size=40_000, z=1.0)  # and so it does
    measured = np.mean(np.cumsum(drawn, axis=0) ** 2, axis=1).mean()
    assert measured == pytest.approx(errors[2], rel=0.05)


@pytest.mark.parametrize(
    ("rounds", "bands", "optimum"),
    [(12, 3, 3.34400), (12, 5, 2.84174), (64, 4, 10.31809), (64, 8, 6.86711), (64, 16, 5.25610)],
)
def test_the_error_is_within_a_tenth_of_the_optimum_that_pfl_finds(rounds, bands, optimum):
    """The optimum is tr(A'A X^-1) / rounds of X that pfl 0.6.0's FTRLMatrixFactorizer returns.

    Its mask has the same number of bands at min_separation = bands + 1. (Its mechanism takes the
    lower Cholesky factor of X = C'C for C, which gives CC' = X; columns of that C are longer than
    1, so the mechanism itself is no reference.)
    """
    sums = np.tril(np.ones((rounds, rounds)))
    error = np.linalg.norm(sums @ np.linalg.inv(strategy(bands, rounds))) ** 2 / rounds
    assert optimum < error < 1.1 * optimum


def test_correlated_noise_is_that_of_pfls_forward_substitution():
    """pfl 0.6.0's ForwardSubstitution with the same C, bandwidth 3, fed with 1, 2, ... 6."""
    noise, before, found = BandedNoise(3), {}, []
    for fresh in range(1, 7):
        made = noise.next("w", torch.tensor([float(fresh)], dtype=torch.float64), before)
        before = noise.remembered({"w": made}, before)
        found.append(float(made))
    assert found == pytest.approx(
        [1.179248, 1.768871, 2.211089, 2.948119, 3.593020, 4.173431], abs=1e-6
    )


def test_epsilon_counts_turns_as_pfl_does():
    """pfl 0.6.0's PLDPrivacyAccountant, 4 compositions, noise 2, q = 0.1, delta = 1e-5."""
    pytest.importorskip("dp_accounting")
    apart = Cohorts("poisson", 10, 100, q=0.1, separation=5)
    assert epsilon_of([Release(2.0, 20)], apart, 1e-5) == pytest.approx(0.56324977, abs=1e-6)


def test_epsilon_counts_turns_and_and_not_rounds():
    pytest.importorskip("dp_accounting")
    for q in (1.0, 0.3):
        apart = Cohorts("poisson", 10, 100, q=q, separation=5)
        once = Cohorts("poisson", 10, 100, q=q)
        for rounds, turns in ((1, 1), (5, 1), (6, 2), (20, 4)):
            ours = epsilon_of([Release(1.0, rounds)], apart, 1e-5, grid=2e-3)
            assert ours == epsilon_of([Release(1.0, turns)], once, 1e-5, grid=2e-3)


def test_turns_of_a_client_are_apart_and_independent_of_all_others():
    sampler, turns = SeparatedSampler(4, q=0.6), {}
    for r in range(40):
        cohort = sampler.cohort(Key(3, "cohort", round=r), 60, 0)
        assert len(set(cohort)) == len(cohort)
        for client in cohort:
            turns.setdefault(client, []).append(r)
    for rounds in turns.values():
        assert all((b - a) % 4 == 0 for a, b in itertools.pairwise(rounds))
    share = sum(map(len, turns.values())) / (60 * 10)
    assert share == pytest.approx(0.6, abs=0.08)
    everybody = [SeparatedSampler(4).cohort(Key(3, "cohort", round=r), 60, 0) for r in range(4)]
    one_more = [SeparatedSampler(4).cohort(Key(3, "cohort", round=r), 61, 0) for r in range(4)]
    assert sorted(itertools.chain(*everybody)) == list(range(60))
    assert [set(more) - {60} for more in one_more] == [set(cohort) for cohort in everybody]


def private(folder=None, callbacks=None, **privacy):
    settings = {"noise_multiplier": 1.0, "bands": 3, **privacy}
    federation = {"sampler": SeparatedSampler(3), "seed": 1, "privacy": ClientDP(**settings)}
    return trainer(FedBABU(), 5, None, folder, federation, callbacks=callbacks or [])


def test_a_resumed_run_continues_the_noise(tmp_path):
    pytest.importorskip("dp_accounting")
    whole, resumed = net(), net()
    private().fit(whole, datamodule=data((8, 6, 7, 6, 6)))
    crash = private(tmp_path, [StopAt("on_aggregate_end", 3)])
    with pytest.raises(Stop):
        crash.fit(net(), datamodule=data((8, 6, 7, 6, 6)))
    private(tmp_path).fit(resumed, datamodule=data((8, 6, 7, 6, 6)), ckpt_path="last")
    assert same(state(whole), state(resumed))


def test_bands_that_turns_are_not_apart_for_are_refused():
    with pytest.raises(ConfigError, match=r"SeparatedSampler\(separation=4\)"):
        private(bands=4)
    with pytest.raises(ConfigError, match="needs two turns of a client to be as many rounds"):
        Federation(
            FedBABU(), cohort_size=None, sampler=PoissonSampler(0.1),
            privacy=ClientDP(noise_multiplier=1.0, bands=2),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="needs a clipping norm that stays"):
        ClientDP(noise_multiplier=1.0, bands=2, max_norm=AdaptiveClipping())
    secure = ClientDP(noise_multiplier=1.0, bands=2, secure=True)
    with pytest.raises(ConfigError, match="too soon for SeparatedSampler"):
        Federation(
            FedBABU(), cohort_size=None, sampler=SeparatedSampler(2), privacy=secure,
            on_client_failure="skip",
        )  # fmt: skip
