"""Killed at any moment and resumed, a run leaves what an uninterrupted one leaves, to the last bit.

``FEDLIGHTNING_KILLS`` says how many kills the slow test makes; ``FEDLIGHTNING_CHAOS_SEED`` draws
other instants.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlightning.storage.checkpoint_reader import loop_state, read_checkpoint
from tests.toys import client_states

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FEDLIGHTNING_KILLS", "100"))
SEED = int(os.environ.get("FEDLIGHTNING_CHAOS_SEED", "0"))
CONFIG = """
seed_everything: 3
model: {class_path: MLP, init_args: {hidden: [8]}}
data:
  class_path: Digits
  init_args:
    num_clients: 10
    batch_size: 20
    val_fraction: 0.2
    partition: {class_path: Shards, init_args: {per_client: 2}}
federation:
  algorithm:  # whatever can be remembered: heads, own models, control variates, server momentum
    class_path: Composite
    init_args: {algorithms: [FedPer, SCAFFOLD, Ditto, FedAdam]}
  compression: Int8
  cohort_size: 3
trainer:
  max_epochs: 6
  logger:
    class_path: fedlightning.reporting.csv_logger.RoundCSVLogger
    init_args: {save_dir: .}
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: PersonalizationCallback, init_args: {epochs: 1, every_n_rounds: 3}}
    - {class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 50}}
    - {class_path: ModelCheckpoint, init_args: {monitor: val/acc, mode: max, save_top_k: 2}}
"""
FIT = ["fit", "--config", "chaos.yaml"]


def outcome(folder: Path) -> dict[str, str]:
    """Return digests of what the newest run in a folder has left."""
    last = max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint, content = read_checkpoint(last), hashlib.sha256()
    loop = loop_state(checkpoint)
    for part in (
        checkpoint["state_dict"],
        client_states(checkpoint),
        loop["extra"]["server"],
    ):
        for key, value in sorted(part.items()):
            content.update(key.encode() + value.numpy().tobytes())
    content.update(repr(loop["round"]).encode())
    left = {"state": content.hexdigest()}
    for name in ("metrics.csv", "clients.csv", "checkpoints/model.safetensors"):
        left[name] = hashlib.sha256((last.parents[1] / name).read_bytes()).hexdigest()
    names = [path.name for path in last.parents[1].rglob("*")]
    assert not [name for name in names if name.endswith(".tmp")], names
    return left


def words(folder: Path, *more: str) -> list[str]:
    """Return a command that goes on, if there is anything to go on from."""
    saved = [*folder.rglob("last.ckpt"), *folder.rglob("previous.ckpt")]
    return [*FIT, *(["--ckpt_path=last"] if saved else []), *more]


class Warm:
    """A process that forks into runs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **_ENVIRONMENT},
        )  # fmt: skip
        self._start(["--version"], ROOT)
        assert self._process.stdout.readline() == "0\n"

    def _start(self, words: list[str], folder: Path) -> int:
        self._process.stdin.write(json.dumps([words, str(folder)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def run(self, folder: Path, kill_after: float | None = None) -> int:
        """Run in a folder, kill the run after some seconds if it still lasts; return its code."""
        pid = self._start(words(folder), folder)
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


def fresh(folder: Path) -> Path:
    folder.mkdir()
    (folder / "chaos.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory) -> tuple[dict[str, str], float]:
    """What an uninterrupted run leaves, and how long it takes."""
    folder = fresh(tmp_path_factory.mktemp("chaos") / "whole")
    begin = time.monotonic()
    assert warm.run(folder) == 0, (folder / "out.txt").read_text()
    return outcome(folder), time.monotonic() - begin


@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_been(kills, whole, warm, tmp_path):
    expected, seconds = whole
    draw, killed, finished, resumed = random.Random(SEED), 0, 0, 0
    while killed < kills:
        folder = fresh(tmp_path / str(finished))
        for _ in range(20):
            goes_on = "--ckpt_path=last" in words(folder)
            allowed = draw.uniform(0, seconds) if killed < kills else None
            code = warm.run(folder, allowed)
            text = (folder / "out.txt").read_text()
            assert code in (0, -signal.SIGKILL), text
            resumed += goes_on
            if code == 0:
                break
            killed += 1
        else:
            code = warm.run(folder)
        assert code == 0
        assert outcome(folder) == expected, f"kill {killed} of seed {SEED}"
        finished += 1
    print(f"{killed} kills, {resumed} resumed starts, {finished} of {finished} runs identical")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(1, 2, 1), (2, 1, 2)])
def test_the_number_of_workers_may_change_where_a_real_process_was_killed(devices, whole, tmp_path):
    expected, _ = whole
    folder, draw = fresh(tmp_path / "real"), random.Random(SEED)
    out, started = (folder / "out.txt").open("a"), []
    for step, count in enumerate(devices):
        more = [f"--trainer.devices={count}", "--trainer.accelerator=cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "fedlightning", *words(folder, *more)], cwd=folder,
            env={**os.environ, **_ENVIRONMENT}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=out,
        )  # fmt: skip
        started.append(process)
        if step < 2:
            _wait_for_round(folder, step, process)
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
        process.wait()
    for (
        process
    ) in started:  # workers that have lost their first process, should they still be there
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    out.close()
    assert process.returncode == 0, (folder / "out.txt").read_text()
    assert outcome(folder) == expected


def _wait_for_round(folder: Path, rounds: int, process: subprocess.Popen[bytes]) -> None:
    name = "previous.ckpt" if rounds else "last.ckpt"
    for _ in range(1200):
        if any(folder.rglob(name)) or process.poll() is not None:
            return
        time.sleep(0.05)
