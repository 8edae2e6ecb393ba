"""A whole deployment where no route leads outside: nothing is fetched, reported or looked up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra flower")

from fedlightning.flower.local_run import environment

pytestmark = pytest.mark.slow
OPTIONS = ["--data.partition.per_client=10", "--federation.cohort_size=3", "--trainer.max_epochs=2"]


@pytest.fixture
def isolated() -> list[str]:
    """The command that runs something where there is the loopback interface alone."""
    words = ["unshare", "--net", "--uts", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    probe = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    if os.geteuid() != 0 or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("network namespaces need root, unshare and iproute2")
    outside = subprocess.run([*words, sys.executable, "-c", probe], capture_output=True, text=True)
    assert "Network is unreachable" in outside.stderr
    return words


@pytest.mark.parametrize("config", ["quickstart.yaml", "algorithms/secure_sum.yaml"])
def test_it_needs_no_network_beyond_its_nodes(isolated, tmp_path, config):
    command = [sys.executable, "-m", "fedlightning"]
    options = ["--config", config, *OPTIONS]
    variables = environment(tmp_path / "unused")
    for words in (
        [*isolated, *command, "deploy", "--local=3", *options, "--trainer.default_root_dir=dep"],
        [*command, "fit", *options, "--data.num_clients=3", "--trainer.default_root_dir=sim"],
    ):
        done = subprocess.run(
            words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, done.stdout + done.stderr
    deployed, simulated = (run_of(tmp_path / root) for root in ("dep", "sim"))
    for name in ("metrics.csv", "clients.csv"):
        assert (deployed / name).read_text() == (simulated / name).read_text()
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (deployed, simulated)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def run_of(root: Path) -> Path:
    return root / "lightning_logs" / "version_0"
