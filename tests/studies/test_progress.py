import io
from pathlib import Path

import pytest

from fedlightning.studies.plan import PlannedRun
from fedlightning.studies.progress import Progress


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def run(make_run, tmp_path):
    make_run("FedAvg", 0)  # two rounds
    config = {"trainer": {"max_epochs": 4}}
    return PlannedRun("FedAvg", {}, 0, Path(tmp_path, "runs", "FedAvg", "seed_0"), config)


def test_a_terminal_has_one_line_about_the_runs_at_work(run):
    stream = Terminal()
    progress = Progress(total=3, done=1, rounds=None, stream=stream)
    progress.draw([run])
    progress.draw([run])  # within the same second
    assert stream.getvalue() == "\r\x1b[K1/3 done · FedAvg, seed 0 2/4"
    progress.ended(run, "done in 3 s", done=True)
    assert stream.getvalue().endswith("\r\x1b[K[2/3] FedAvg, seed 0: done in 3 s\n")


def test_elsewhere_each_run_says_how_far_it_is(run):
    stream = io.StringIO()
    progress = Progress(total=3, done=0, rounds=12, stream=stream)
    progress.started(run)
    progress.draw([run])
    progress.milestone(run, "Round 3/4: global/acc=0.5")
    progress.ended(run, "interrupted", done=False)
    assert [line.strip() for line in stream.getvalue().splitlines()] == [
        "FedAvg, seed 0: resumes after round 2",
        "FedAvg, seed 0: Round 3/4: global/acc=0.5",
        "[0/3] FedAvg, seed 0: interrupted",
    ]


def test_the_time_left_is_told_from_the_rounds_made(run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fedlightning.studies.progress.time.monotonic", lambda: clock[0])
    progress = Progress(total=3, done=0, rounds=8, stream=Terminal())
    clock[0] = 60.0
    assert progress._left({"FedAvg, seed 0": 2}) == "", "too early to say"
    assert progress._left({"FedAvg, seed 0": 6}) == ", about 20.0 s left"
    assert progress._left({"FedAvg, seed 0": 8}) == ""
