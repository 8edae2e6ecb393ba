"""A preempted SLURM job: saved on SIGUSR1, requeued, and gone on with to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from fedlightning import Algorithm
from fedlightning.storage.checkpoint_reader import rounds_in
from tests.toys import Net, fit, net, same, state

KEPT = Algorithm(train="full", share="body")


class Preempted(Net):
    """Gets SLURM's signals in the middle of a client of round 2."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.current_epoch == 2 and batch_idx == 0 and self.trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """The environment of a job of one task, and an ``scontrol`` that writes down its arguments."""
    for name, value in {
        "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "fl", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return tmp_path / "requeued"


def run(folder: Path, module):
    return fit(module, KEPT, rounds=4, cohort=3, folder=folder, plugins=[SLURMEnvironment()])


def test_a_preempted_job_goes_on_to_the_bits_of_one_that_was_left_alone(slurm, tmp_path):
    whole = net(dropout=0.3)
    run(tmp_path / "whole", whole)
    with pytest.raises(SystemExit):
        run(tmp_path / "job", net(module=Preempted, dropout=0.3))
    assert slurm.read_text() == "requeue 17\n"
    saved = torch.load(tmp_path / "job" / "hpc_ckpt_1.ckpt", weights_only=True)
    assert rounds_in(saved) == 2
    resumed = net(seed=9, dropout=0.3)
    built = run(tmp_path / "job", resumed)
    assert built.current_epoch == 4
    assert built.global_step == 12
    assert same(state(resumed), state(whole))
