"""A worker that dies, stops, or gets a signal: the run ends, in seconds, and says which one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.toys import same

SLOW = """
import os, time
import pytorch_lightning as pl
from fedlightning.models import MLP

class Slow(MLP):
    def __init__(self, seconds: float = 0.1):
        super().__init__(hidden=[4])
        self.seconds = seconds
    def on_train_start(self):
        with open(f"at.{self.trainer.global_rank}", "a") as file:
            print(os.getpid(), self.trainer.current_epoch, file=file)
    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)
"""


@dataclass
class Run:
    """A run of two workers, as a process of its own."""

    process: subprocess.Popen[str]
    folder: Path

    def pid(self, rank: int, round_: int = 1) -> int:
        """Return a worker's process id once it trains in this round."""
        for _ in range(1200):
            lines = _lines(self.folder / f"at.{rank}")
            reached = [line.split() for line in lines if int(line.split()[1]) >= round_]
            if reached or self.process.poll() is not None:
                break
            time.sleep(0.1)
        return int(reached[0][0])

    def end(self, seconds: float = 30) -> tuple[int, str, float]:
        """Return exit code, stderr and how long it took, once all its processes are gone."""
        start = time.monotonic()
        _, err = self.process.communicate(timeout=seconds)
        took = time.monotonic() - start
        for rank in (0, 1):
            for line in _lines(self.folder / f"at.{rank}"):
                assert not _alive(int(line.split()[0])), f"worker {rank} is left behind"
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 6
        return self.process.returncode, err, took


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _alive(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def start(base, write, tmp_path, monkeypatch):
    """Start runs; none outlives the test."""
    monkeypatch.setenv("FEDLIGHTNING_WORKER_SILENCE", "2")
    write("slow.py", SLOW)
    started: list[Run] = []

    def start_(*words: str, rounds: int = 5000) -> Run:
        options = ["--trainer.accelerator=cpu", "--trainer.devices=2"]
        options.append(f"--trainer.max_epochs={rounds}")
        command = [sys.executable, "-m", "fedlightning", "fit", "--config", "ok.yaml"]
        process = subprocess.Popen(
            [*command, "--model=slow.Slow", *options, *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(Run(process, tmp_path))
        return started[-1]

    yield start_
    for run in started:
        run.process.kill()
        for rank in (0, 1):
            for line in _lines(tmp_path / f"at.{rank}"):
                with contextlib.suppress(OSError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)


def test_a_killed_worker_is_named_with_its_client_and_the_round_before_is_safe(start):
    run = start()
    os.kill(run.pid(1), signal.SIGKILL)
    code, err, took = run.end()
    assert code == 5
    assert took < 10
    first, second = err.splitlines()
    assert first.startswith("error: worker 1 died (signal 9), client ")
    assert ", round " in first
    assert "last.ckpt holds round" in second


def test_a_stopped_worker_is_named_and_ended(start):
    run = start()
    os.kill(run.pid(1), signal.SIGSTOP)
    code, err, took = run.end()
    assert code == 5
    assert took < 25
    assert err.startswith("error: worker 1 was stopped and gave no sign of life for ")


def test_a_worker_in_the_middle_of_a_step_is_ended_by_force(start):
    run = start("--model.seconds=600")
    run.pid(0, round_=0)
    os.kill(run.pid(1, round_=0), signal.SIGKILL)
    code, err, took = run.end()
    assert code == 5
    assert took < 25
    assert err.startswith("error: worker 1 died (signal 9), client ")


@pytest.mark.slow
def test_a_worker_does_not_outlive_a_first_one_that_is_killed_at_the_start(start):
    run = start()
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
    while not (pids := children.read_text().split()):
        time.sleep(0.05)
    os.kill(run.process.pid, signal.SIGKILL)
    run.end()
    for _ in range(300):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"{pids} are left behind")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_workers_do_not_outlive_the_first_one(start, number):
    run = start()
    os.kill(run.pid(0), number)
    code, err, took = run.end()
    assert code != 0
    assert took < 25
    assert err.startswith("error: worker 0 ")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["0", "1", "all"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_or_all_ends_the_run_with_its_code(start, number, target):
    run = start()
    pids = [run.pid(0), run.pid(1)]
    for pid in pids if target == "all" else [pids[int(target)]]:
        os.kill(pid, number)
    code, err, took = run.end()
    assert code == 128 + number
    assert took < 25
    assert err.startswith("interrupted in round ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_under_retry_a_killed_worker_leaves_no_trace(start, tmp_path):
    options = ["--federation.on_client_failure=retry", "--trainer.default_root_dir=killed"]
    run = start(*options, "--model.seconds=0.2", rounds=4)
    os.kill(run.pid(1), signal.SIGKILL)
    code, err, _ = run.end(seconds=200)
    assert code == 0, err
    assert err.startswith("warning: worker 1 died (signal 9), client ")
    assert "restarting all workers from " in err
    whole = start("--trainer.default_root_dir=whole", "--model.seconds=0", rounds=4)
    assert whole.end(seconds=200)[0] == 0
    states = [
        torch.load(
            max((tmp_path / name).rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns),
            weights_only=True,
        )
        for name in ("killed", "whole")
    ]
    assert states[0]["epoch"] == states[1]["epoch"] == 3
    assert states[0]["global_step"] == states[1]["global_step"]
    assert same(states[0]["state_dict"], states[1]["state_dict"])
