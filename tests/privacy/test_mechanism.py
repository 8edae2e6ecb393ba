"""A private round: how far one client moves it, what noise it has, and what it covers.

Each property is a function that is given a mechanism. The same functions are given mutants, each
with one mistake that is easily made, and must find them out.
"""

from __future__ import annotations

import dataclasses
import math
import os

import pytest
import torch
from scipy import stats

from fedlightning.core.messages import ClientUpdate
from fedlightning.core.seeding import Key
from fedlightning.errors import ConfigError
from fedlightning.privacy import (
    AdaptiveClipping,
    ClientDP,
    ClientMechanism,
    KeyedNoise,
    PrivateRound,
    SystemNoise,
)
from fedlightning.privacy.mechanism import WITHIN

C, M = 0.7, 4.0
START = {
    "w": torch.tensor([1.0, -2.0, 0.5]),
    "b": torch.tensor([[3.0]]),
    "z": torch.tensor([1 + 2j, -1j]),
    "still": torch.tensor([9.0]),
}
MOVING = ("w", "b", "z")
EXTRA = {"drift/w": torch.zeros(2)}


def mechanism(kind=ClientMechanism, z: float = 0.0, **settings) -> ClientMechanism:
    settings = {"max_norm": C, **settings}
    entropy = settings.pop("entropy", None)
    return kind(ClientDP(noise_multiplier=z, **settings), z, M, 0, entropy)


def update(direction: float | torch.Tensor, extra: float = 0.0, **other) -> ClientUpdate:
    """Return an update that has moved every coordinate by so much."""
    both = {k: direction * (1 + 1j) if v.is_complex() else direction for k, v in START.items()}
    state = {k: v + both[k] if k in MOVING else v for k, v in START.items()}
    extras = {"drift/w": torch.full((2,), extra), **other}
    return ClientUpdate(0, state, 10, extras=extras)


def merged(made, updates, version: int = 0, state=None):
    """Return what a round of these updates gives, as one vector."""
    opened = made.open(state or made.start(), START, MOVING, EXTRA, version)
    for each in updates:
        opened.push(each)
    model, extras = opened.result()
    values = [torch.view_as_real(v) if v.is_complex() else v for v in model.values()]
    values += list(extras.merged.values())
    return torch.cat([value.double().reshape(-1) for value in values])


HOSTILE = [
    update(0.01),
    update(3.0, extra=-5.0),
    update(1e30),
    update(math.nan),
    update(math.inf),
    update(0.0, extra=1e30),
    update(0.0, extra=math.nan),
    ClientUpdate(0, {**START, "w": START["w"] + torch.tensor([0.0, 1e20, 0.0])}, 1, extras=EXTRA),
    ClientUpdate(0, {**START, "w": torch.zeros(4)}, 1, extras=EXTRA),
    ClientUpdate(0, {"w": START["w"]}, 1, extras=EXTRA),
    ClientUpdate(0, START, 1, extras={}),
    ClientUpdate(0, START, 10**9, extras={**EXTRA, "more": torch.ones(5)}),
]


def check_sensitivity(made) -> None:
    others = [update(0.3, extra=0.1), update(-2.0)]
    without = merged(made, others)
    slack = 1e-6  # the model is rounded to float32
    for each in HOSTILE:
        moved = merged(made, [others[0], each, others[1]]) - without
        assert float(moved.norm()) <= C / M + slack
    towards, away = update(5.0, extra=5.0), update(-5.0, extra=-5.0)
    apart = merged(made, [*others, towards]) - merged(made, [*others, away])
    assert float(apart.norm()) == pytest.approx(2 * C / M, rel=1e-5)  # attained, hence z/2


def check_coverage(made) -> None:
    """Every coordinate moves with a client, and with noise."""
    whole = merged(made, [update(0.1, extra=0.1)]) - merged(made, [])
    assert (whole.abs() > 0).all()
    assert float(whole.norm()) == pytest.approx(math.sqrt(10) * 0.1 / M, rel=1e-5)
    noisy = mechanism(type(made), z=1.0)
    assert (merged(noisy, []) - merged(made, [])).abs().min() > 0


def check_noise(kind, z: float = 1.3, **settings) -> None:
    """Its residuals are normal with deviation zC/m, and new in each round and tensor."""
    count = 50_000
    start = {"a": torch.zeros(count), "b": torch.zeros(count)}
    residuals = []
    for version in range(2):
        made = mechanism(kind, z, **settings)
        opened = made.open(made.start(), start, ("a", "b"), {}, version)
        model, _ = opened.result()
        residuals += [model["a"].double(), model["b"].double()]
    std = z * C / M
    for residual in residuals:
        assert abs(float(residual.mean())) < 3.5 * std / math.sqrt(count)
        assert float(residual.std()) == pytest.approx(std, rel=3.5 / math.sqrt(2 * count))
        assert stats.kstest(residual.numpy() / std, "norm").pvalue > 1e-3
    for one in range(4):
        for other in range(one):
            correlation = torch.corrcoef(torch.stack([residuals[one], residuals[other]]))[0, 1]
            assert abs(float(correlation)) < 4 / math.sqrt(count)


def test_a_client_moves_the_model_by_the_norm_at_most_and_two_by_twice_that():
    check_sensitivity(mechanism())


def test_all_that_clients_train_and_send_is_clipped_and_noised():
    check_coverage(mechanism(max_norm=100.0))


def test_noise_is_normal_and_new_each_time():
    check_noise(ClientMechanism)
    check_noise(ClientMechanism, secure=True, entropy=lambda: os.urandom(32))


class TwiceAsFar(ClientMechanism):
    def max_norm(self, state):
        return 2 * super().max_norm(state)


class _NotAgain(PrivateRound):
    def push(self, update):
        self._max_norm = math.inf  # trusts the client to have clipped
        super().push(update)


class Trusting(ClientMechanism):
    def open(self, *args):
        return _NotAgain(self, *args)


class DropsAKey(ClientMechanism):
    def open(self, state, received, moving, extras, version):
        return super().open(state, received, list(moving)[:-1], extras, version)


class ForgetsExtras(ClientMechanism):
    def open(self, state, received, moving, extras, version):
        round_ = super().open(state, received, moving, extras, version)
        push = round_.push
        quiet = {key: torch.zeros_like(value) for key, value in extras.items()}
        round_.push = lambda update: push(dataclasses.replace(update, extras=quiet))
        return round_


class SameNoise(ClientMechanism):
    def release(self, state, version):
        return super().release(state, 0)


class _OnePerTensor(KeyedNoise):
    def __init__(self, key):
        self.key = key

    def normal(self, shape):
        return KeyedNoise(self.key).normal(shape)


class SameForEachTensor(ClientMechanism):
    def release(self, state, version):
        ledger, _ = super().release(state, version)
        return ledger, _OnePerTensor(Key(0, "noise", round=version))


class DividesByWhoCame(ClientMechanism):
    def open(self, *args):
        opened = PrivateRound(self, *args)
        push = opened.push

        def counted(update):
            push(update)
            self.expected_cohort = self.expected_cohort + 1 if opened._sums else 1

        opened.push = counted
        return opened


class HalfTheNoise(ClientMechanism):
    def std(self, max_norm):
        return super().std(max_norm) / 2


@pytest.mark.parametrize("mutant", [TwiceAsFar, Trusting, DividesByWhoCame])
def test_mutants_that_move_too_far_are_found_out(mutant):
    with pytest.raises(AssertionError):
        check_sensitivity(mechanism(mutant))


@pytest.mark.parametrize("mutant", [DropsAKey, ForgetsExtras])
def test_mutants_that_leave_something_out_are_found_out(mutant):
    with pytest.raises((AssertionError, RuntimeError)):
        check_coverage(mechanism(mutant, max_norm=100.0))


@pytest.mark.parametrize("mutant", [SameNoise, SameForEachTensor, HalfTheNoise])
def test_mutants_with_other_noise_are_found_out(mutant):
    with pytest.raises(AssertionError):
        check_noise(mutant)


def test_a_round_by_hand():
    """Two clients, one scaled down: theta + (sum of clipped) / m, by plain arithmetic."""
    start = {"w": torch.tensor([1.0, 1.0])}
    made = mechanism(max_norm=1.0)
    opened = made.open(made.start(), start, ["w"], {}, 0)
    opened.push(ClientUpdate(0, {"w": torch.tensor([4.0, 5.0])}, 99))  # moved by (3, 4), norm 5
    opened.push(ClientUpdate(1, {"w": torch.tensor([1.5, 1.0])}, 1))
    model, _ = opened.result()
    torch.testing.assert_close(model["w"], torch.tensor([1 + (0.6 + 0.5) / 4, 1 + 0.8 / 4]))
    assert opened.after["ledger"].tolist() == [[0.0, 1.0]]


def test_the_clipping_norm_follows_the_quantile_by_hand():
    settings = AdaptiveClipping(initial=2.0, quantile=0.5, lr=0.2)
    made = mechanism(max_norm=settings)  # no noise
    opened = made.open(made.start(), START, MOVING, EXTRA, 0)
    for bit in (1.0, 1.0, 0.0):  # m = 4 is the expected cohort: b~ = (3 bits - 3/2) / 4 + 1/2
        opened.push(update(0.0, **{WITHIN: torch.tensor(bit)}))
    opened.result()
    share = (2 - 1.5) / 4 + 0.5
    assert float(opened.after["max_norm"]) == pytest.approx(2 * math.exp(-0.2 * (share - 0.5)))


def test_bits_and_updates_together_cost_what_z_says():
    made = mechanism(z=0.8, max_norm=AdaptiveClipping(initial=1.0, bit_noise=0.9))
    update_noise = made.std(1.0)  # of sensitivity 1; the centred bit has sensitivity 1/2
    assert update_noise**-2 + (2 * 0.9) ** -2 == pytest.approx(0.8**-2)
    with pytest.raises(ConfigError, match=r"bit_noise=0\.2 leaves no noise .* more than 0\.4"):
        mechanism(z=0.8, max_norm=AdaptiveClipping(bit_noise=0.2))


def test_a_lying_client_moves_the_norm_by_one_bit_at_most():
    made = mechanism(max_norm=AdaptiveClipping(initial=1.0, lr=1.0))
    norms = []
    for bits in ([1.0, 1e30], [1.0, math.nan], [1.0, -1e30], [1.0]):
        opened = made.open(made.start(), START, MOVING, EXTRA, 0)
        for bit in bits:
            opened.push(update(0.0, **{WITHIN: torch.tensor(bit)}))
        opened.result()
        norms.append(math.log(float(opened.after["max_norm"])))
    assert max(abs(norm - norms[-1]) for norm in norms) <= 0.5 / M + 1e-12


def test_system_noise_differs_by_secret_and_is_the_same_on_all_workers():
    one, same, other = SystemNoise(b"1" * 32), SystemNoise(b"1" * 32), SystemNoise(b"2" * 32)
    first = one.normal([3, 5])
    assert torch.equal(first, same.normal([3, 5]))
    assert not torch.equal(first, other.normal([3, 5]))
    assert not torch.equal(first, one.normal([3, 5]))
    assert one.normal([0]).numel() == 0
    assert one.normal([]).shape == ()
