"""Lines about a run that nobody watches: by time, with the main metric and the expected end."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from pytorch_lightning.callbacks import Callback

from fedlightning import FedAvg
from fedlightning.callbacks import RoundProgressBar
from fedlightning.reporting.line_times import LineTimes
from tests.toys import fit, net


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(hours):
    clock = Clock()
    times = LineTimes(clock=clock)
    seen = []
    for second in range(1, int(hours * 3600) + 1):
        clock.now = float(second)
        if times.due():
            seen.append(second)
    return seen


def test_lines_come_every_half_minute_and_then_ever_more_rarely():
    seen = lines_of(10)
    assert seen[:4] == [10, 40, 70, 100]
    gaps = [after - before for before, after in pairwise(seen)]
    assert gaps == sorted(gaps)
    assert max(gaps) == 600
    assert len(seen) == 121


def test_the_end_follows_from_the_rounds_that_this_process_has_made(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fedlightning.reporting.line_times.time.time", lambda: 0.0)
    monkeypatch.setenv("TZ", "UTC")
    times = LineTimes(first_round=10, clock=clock)
    clock.now = 100.0
    # two rounds in 100 s, eight are left
    assert times.line(done=12, rounds=20).startswith("1 min 40 s, about 6 min 40 s left (until ")
    assert times.line(done=12, rounds=0) == "1 min 40 s"
    assert times.line(done=10, rounds=20) == "1 min 40 s"


class SlowRounds(Callback):
    """Turns the clock of the lines: so many seconds for each client."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def on_train_batch_start(self, *_):
        self.clock.now += self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fedlightning.callbacks.progress_bar.LineTimes", lambda **settings: (
        LineTimes(**settings, clock=clock)
    ))  # fmt: skip
    return clock


def printed(capsys, clock, seconds, rounds, **settings):
    callbacks = [SlowRounds(clock, seconds), RoundProgressBar(), *settings.pop("callbacks", [])]
    fit(net(), FedAvg(), rounds=rounds, enable_progress_bar=True, callbacks=callbacks, **settings)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Round")]


def test_a_quick_run_prints_its_last_round_alone(capsys, clock):
    lines = printed(capsys, clock, 0.1, rounds=12)
    assert len(lines) == 1
    assert re.fullmatch(
        r"Round 12/12: global/acc=\d\.\d{3}, train/loss=\d\.\d{3}, 4\.8 s", lines[0]
    )


def test_a_slow_run_says_where_it_is_within_a_round(capsys, clock):
    lines = printed(capsys, clock, 20.0, rounds=2)  # four clients a round: 80 s
    assert lines[0].startswith("Round 1/2, client 1/4: 20.0 s, about 2 min 20 s left (until ")
    assert lines[1].startswith("Round 1/2, client 3/4: 1 min 0 s, about 1 min 40 s left")
    assert lines[-1].startswith("Round 2/2: global/acc=")
    assert lines[-1].endswith(", 2 min 40 s")


class Stop(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


def test_a_run_that_stops_early_prints_its_last_round(capsys, clock):
    lines = printed(capsys, clock, 0.1, rounds=9, callbacks=[Stop()])
    assert len(lines) == 1
    assert lines[0].startswith("Round 2/9: global/acc=")
