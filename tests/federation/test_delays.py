"""Simulated time: what a client's updates take depends on the client and its turn alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedlightning.errors import ConfigError, DataError
from fedlightning.federation.delays import (
    ByClient,
    ByExamples,
    ConstantDelay,
    Exponential,
    LogNormal,
    Trace,
    Turn,
    Windows,
    delays_of,
)


def turn(client: int = 0, number: int = 0, seed: int = 0, examples: int = 10) -> Turn:
    return Turn(seed, client, number, lambda _: examples)


def sample(delays, turns: int = 4000) -> np.ndarray:
    return np.array([delays.seconds(turn(client=i % 7, number=i)) for i in range(turns)])


def test_exponential_times_have_their_mean_and_shape():
    times = sample(Exponential(3.0))
    assert abs(times.mean() - 3.0) < 4 * 3.0 / math.sqrt(len(times))
    assert abs((times > 3.0).mean() - math.exp(-1)) < 0.03


def test_log_normal_times_have_their_median_and_spread():
    logs = np.log(sample(LogNormal(2.0, sigma=0.5)))
    assert abs(np.median(logs) - math.log(2.0)) < 0.04
    assert abs(logs.std() - 0.5) < 0.03


@pytest.mark.parametrize("delays", [Exponential(2.0), LogNormal(2.0)])
def test_a_time_is_that_of_seed_client_and_turn(delays):
    one = delays.seconds(turn(3, 5))
    assert delays.seconds(turn(3, 5, examples=99)) == one
    others = [turn(4, 5), turn(3, 6), turn(3, 5, seed=1)]
    assert len({one, *(delays.seconds(other) for other in others)}) == 4


def test_means_by_client_repeat_beyond_the_list():
    delays = Exponential([1.0, 100.0])
    assert [delays.typical(turn(client)) for client in range(4)] == [1.0, 100.0, 1.0, 100.0]
    ratio = delays.seconds(turn(1)) / Exponential(1.0).seconds(turn(1))
    assert ratio == pytest.approx(100.0, rel=1e-12)


def test_devices_are_drawn_once_and_work_is_by_examples():
    delays = ByExamples(0.5, factors=[1, 4], shares=[0.75, 0.25], overhead=2.0)
    first = [delays.seconds(turn(client, 0)) for client in range(2000)]
    assert first == [delays.seconds(turn(client, 9)) for client in range(2000)]
    assert set(first) == {2.0 + 10 * 0.5, 2.0 + 10 * 0.5 * 4}
    assert abs(np.mean(np.array(first) > 10) - 0.25) < 0.04
    assert delays.seconds(turn(examples=20)) - 2.0 == 2 * (delays.seconds(turn()) - 2.0)


def test_updates_are_lost_as_often_as_said():
    delays = ConstantDelay(dropout=0.3)
    lost = [delays.is_lost(turn(i % 5, i)) for i in range(4000)]
    assert abs(np.mean(lost) - 0.3) < 0.03
    assert not any(ConstantDelay().is_lost(turn(i)) for i in range(100))


def test_a_window_opens_once_in_each_period_for_its_share():
    windows = Windows(share=0.25, period=8.0)
    for client in range(20):
        grid = np.arange(0, 80, 0.125)
        opened = np.array([windows.opening(turn(client), float(now)) == now for now in grid])
        assert abs(opened.mean() - 0.25) < 0.02
        for now in grid[~opened][:50]:
            opening = windows.opening(turn(client), float(now))
            assert now < opening <= now + 6.0
            assert windows.opening(turn(client), opening) == opening
    phases = {windows.opening(turn(client), 1e6) for client in range(20)}
    assert len(phases) > 10


def test_a_trace_gives_a_clients_turns_in_order_and_starts_over(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("client,seconds\n0,1.5\n2,9\n0,2.5\n")
    delays = Trace(path)
    assert [delays.seconds(turn(0, number)) for number in range(3)] == [1.5, 2.5, 1.5]
    assert delays.seconds(turn(2)) == 9.0
    assert delays.seconds(turn(1)) == 9.0  # the second client of the file
    assert delays.typical(turn(0)) == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,time\n0,1\n", r"trace\.csv: .*columns client and seconds.*it has client, time"),
        ("client,seconds\n0,-1\n", r"seconds=-1 is not a number > 0"),
        ("client,seconds\n0,nan\n", r"seconds=nan"),
        ("client,seconds\nx,1\n", r"invalid literal"),
        ("client,seconds\n", r"is empty"),
        (None, r"cannot be read: .*No such file"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        Trace(path).seconds(turn())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantDelay(0.0), r"each must be a finite number of seconds > 0, got 0"),
        (lambda: Exponential([1.0, -1.0]), r"mean\[1\].*> 0.*got -1"),
        (lambda: ByClient([]), r"times must be a list of numbers > 0, got \[\]"),
        (lambda: ConstantDelay(dropout=1.0), r"dropout.*got 1\.0"),
        (lambda: Windows(0.0), r"share.*got 0"),
        (lambda: ByExamples(factors=[1, 2], shares=[0.5, 0.6]), r"shares must be 2 probabilities"),
        (lambda: delays_of("fast"), r"delays must be a number of seconds.*got 'fast'"),
        (lambda: delays_of(-1.0), r"delays.*> 0.*got -1"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
