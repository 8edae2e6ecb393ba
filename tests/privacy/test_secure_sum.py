"""Secure aggregation's arithmetic: exact, in any order, and honest about what it cannot do."""

from __future__ import annotations

import csv
import itertools
from fractions import Fraction

import pytest
import torch

from fedlightning import SCAFFOLD, Algorithm, ClientHook, FedAvg, FedBABU, Federation
from fedlightning.algorithms.aggregation import SecureSum
from fedlightning.core.messages import Up
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.uplink import Int8
from tests.toys import data, net, same, state, trainer

START = {"w": torch.tensor([1.0, -3.0, 0.25]), "steps": torch.tensor(3)}


def merged(rule: SecureSum, states, start=START):
    accumulator = rule.start(start, ["w"])
    for each in states:
        accumulator.push(each, 1.0)
    return accumulator.result()


def random_states(count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [{**START, "w": START["w"] + torch.rand(3, generator=generator) - 0.5}
            for _ in range(count)]  # fmt: skip


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_that_of_rational_numbers_in_any_order(bits):
    rule, states = SecureSum(limit=1.0, bits=bits, max_clients=8), random_states(4)
    step = Fraction(1, 2**rule.fraction_bits)
    expected = []
    for at in range(3):
        changes = [Fraction(float(s["w"][at])) - Fraction(float(START["w"][at])) for s in states]
        whole = sum(round(change / step) for change in changes)  # ties to even, as torch has it
        expected.append(float(Fraction(float(START["w"][at])) + whole * step / len(states)))
    results = [merged(rule, order) for order in itertools.permutations(states)]
    assert all(same(result, results[0]) for result in results)
    assert results[0]["w"].tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()
    assert "steps" not in results[0]  # the server keeps its own integers


def test_it_is_the_mean_up_to_the_last_bit_of_fixed_point():
    states = random_states(5)
    mean = sum(s["w"].double() for s in states) / 5
    for bits, error in ((32, 2**-21), (64, 2**-24)):
        result = merged(SecureSum(bits=bits, max_clients=512), states)["w"].double()
        assert float((result - mean).abs().max()) <= error


def test_the_largest_cohort_of_largest_changes_does_not_overflow():
    for bits in (32, 64):
        rule = SecureSum(limit=0.75, bits=bits, max_clients=16)
        for sign in (1.0, -1.0):
            far = {**START, "w": START["w"] + sign * 99}
            result = merged(rule, [far] * 16)["w"]
            torch.testing.assert_close(result, START["w"] + sign * 0.75, rtol=0, atol=1e-6)


def test_one_more_client_than_there_is_room_for_is_refused_before_and_in_the_round():
    rule = SecureSum(max_clients=2)
    with pytest.raises(ConfigError, match=r"sums 2 clients at most, federation\.cohort_size gives"):
        Federation(FedBABU(), aggregator=rule, cohort_size=3)
    with pytest.raises(FederationError, match="sums 2 clients at most"):
        merged(rule, random_states(3))


def test_weights_are_refused_as_a_setting_and_as_a_number():
    with pytest.raises(ConfigError, match="SecureSum adds clients up without weights, and FedAvg"):
        Federation(FedAvg(), aggregator=SecureSum())
    accumulator = SecureSum().start(START, ["w"])
    accumulator.push(START, 1.0)
    with pytest.raises(ConfigError, match="got 2 beside 1"):
        accumulator.push(START, 2.0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"limit": 0.0}, "limit must be"),
        ({"bits": 16}, "bits must be 32 or 64, got 16"),
        ({"max_clients": 0}, "max_clients must be"),
        ({"limit": 1e9, "max_clients": 100}, "leave no bits after the point of 32-bit"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        SecureSum(**settings)


def test_what_the_server_could_not_see_is_refused():
    with pytest.raises(ConfigError, match="leave the compression out"):
        Federation(FedBABU(), aggregator=SecureSum(), compression=Int8())

    class Listed(ClientHook):
        messages = (Up("list", merge="concatenate"),)

    hook = Algorithm(local=[Listed()], weights="uniform")
    with pytest.raises(ConfigError, match="SecureSum cannot protect 'list' of Listed"):
        Federation(hook, aggregator=SecureSum())


def fitted(aggregator, folder=None, algorithm=None, devices=1, **settings):
    module = net(dropout=0.3)
    several = {"devices": 2, "accelerator": "cpu", "strategy": "ddp_fork"} if devices > 1 else {}
    built = trainer(
        algorithm or FedAvg(weights="uniform"), 3, 1.0, folder,
        {"aggregator": aggregator, **settings}, **several,
    )  # fmt: skip
    built.fit(module, datamodule=data())
    return module


def test_a_run_is_that_of_the_mean_within_fixed_points_precision():
    plain, secure = fitted(None), fitted(SecureSum(bits=64))
    coarse = fitted(SecureSum(limit=100.0, bits=32, max_clients=2**20))  # 4 bits after the point
    for key, value in state(plain).items():
        torch.testing.assert_close(state(secure)[key], value, rtol=1e-5, atol=1e-6)
    apart = max(float((state(coarse)[k] - v).abs().max()) for k, v in state(plain).items())
    assert apart > 1e-3


def test_extras_are_in_the_sum_and_workers_agree():
    one, two = (fitted(SecureSum(limit=10.0), algorithm=SCAFFOLD(), devices=n) for n in (1, 2))
    assert same(state(one), state(two))


@pytest.mark.parametrize(("bits", "size"), [(32, 4), (64, 8)])
def test_the_bytes_are_those_of_integers(bits, size, tmp_path):
    module = fitted(SecureSum(bits=bits), tmp_path)
    (path,) = tmp_path.rglob("metrics.csv")
    row = next(csv.DictReader(path.read_text().splitlines()))
    numbers = sum(value.numel() for value in state(module).values())
    assert float(row["communication/bytes_up"]) == 4 * numbers * size  # four clients
