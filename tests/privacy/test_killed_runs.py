"""Private runs that ``kill -9`` ends at any moment: bits, epsilon and ledger are not harmed.

``FEDLIGHTNING_CHAOS_SEED`` draws other instants.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("dp_accounting", reason="needs the extra dp")

from fedlightning.privacy import Ledger
from tests.storage.test_chaos import ROOT, SEED, outcome, words

KILLS, ROUNDS = 20, 12
A_ROUND = 0.5  # seconds, about, with what is written after it
CONFIG = """
seed_everything: 3
model: {class_path: MLP, init_args: {hidden: [8]}}
data: {class_path: Digits, init_args: {num_clients: 10, batch_size: 20, val_fraction: 0.2}}
federation:
  algorithm: {class_path: FedBABU, init_args: {weights: uniform}}
  cohort_size: null
  sampler: {class_path: PoissonSampler, init_args: {q: 0.4}}
  on_client_failure: skip
  privacy: {class_path: ClientDP, init_args: {noise_multiplier: 1.0, secure: SECURE}}
trainer:
  max_epochs: ROUNDS
  logger:
    class_path: fedlightning.reporting.csv_logger.RoundCSVLogger
    init_args: {save_dir: .}
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: PersonalizationCallback, init_args: {epochs: 1, every_n_rounds: 4}}
    - {class_path: releases.Releases}
"""
RELEASES = '''
import os
import pytorch_lightning as pl


class Releases(pl.Callback):
    """Writes a line for each model with noise, beside all ledgers."""

    def on_aggregate_end(self, trainer, module):
        file = os.open("releases.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, b"released\\n")
        os.fsync(file)
        os.close(file)
'''


def fresh(folder: Path, secure: bool) -> Path:
    folder.mkdir()
    config = CONFIG.replace("SECURE", str(secure).lower()).replace("ROUNDS", str(ROUNDS))
    (folder / "chaos.yaml").write_text(config)
    (folder / "releases.py").write_text(RELEASES)
    return folder


def run(folder: Path, kill: tuple[int, float] | None = None) -> int:
    """Run, or go on, in a folder; return the exit code.

    Args:
        folder: The run's folder.
        kill: After how many more rounds, and seconds, it is killed, if it still lasts.
    """
    wanted = released(folder) + (kill[0] if kill is not None else 0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "out.txt").open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedlightning", *words(folder)], cwd=folder, env=environment,
            stdout=out, stderr=out,
        )  # fmt: skip
        if kill is None:
            return process.wait()
        while process.poll() is None and released(folder) < wanted:
            time.sleep(0.002)
        try:
            process.wait(kill[1])
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return process.returncode


def released(folder: Path) -> int:
    path = folder / "releases.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_twenty_kills_harm_neither_bits_nor_ledger(secure, tmp_path):
    whole, draw, killed, again = fresh(tmp_path / "whole", secure), random.Random(SEED), 0, 0
    assert run(whole) == 0, (whole / "out.txt").read_text()
    (expected,) = whole.rglob("privacy.json")
    assert Ledger.read(expected).rounds == released(whole) == ROUNDS
    runs = 0
    while killed < KILLS:
        folder, code = fresh(tmp_path / str(runs), secure), -signal.SIGKILL
        while code != 0:
            kill = draw.randint(1, ROUNDS // 3), draw.uniform(0, A_ROUND)
            code = run(folder, kill if killed < KILLS else None)
            assert code in (0, -signal.SIGKILL), (folder / "out.txt").read_text()
            killed += code != 0
            if secure:
                counted = sum(Ledger.read(path).rounds for path in folder.rglob("privacy.json"))
                assert counted >= released(folder), f"kill {killed} of seed {SEED}"
        (ledger,) = (last.parents[1] / "privacy.json" for last in folder.rglob("last.ckpt"))
        if secure:
            assert Ledger.read(ledger).rounds >= max(released(folder), ROUNDS)
            again += Ledger.read(ledger).rounds - ROUNDS
        else:  # metrics.csv, which has epsilon, and the server's state are among what is compared
            assert outcome(folder) == outcome(whole), f"kill {killed} of seed {SEED}"
            assert ledger.read_bytes() == expected.read_bytes()
        runs += 1
    print(f"{killed} kills, {runs} runs, {again} rounds counted twice")
