"""Nodes as processes: launched by hand, in network namespaces, by torchrun; one of them is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.test_lost_workers import SLOW
from tests.toys import client_states, same

pytestmark = pytest.mark.slow

FIT = ["-m", "fedlightning", "fit", "--config", "ok.yaml", "--model=slow.Slow"]
FIT += ["--trainer.accelerator=cpu", "--federation.algorithm=FedPer", "--ckpt_path=auto"]
ROUNDS = 4


def newest(folder: Path) -> Path:
    return max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (torch.load(newest(path), weights_only=True) for path in (one, other))
    assert first["epoch"] == second["epoch"]
    assert same(first["state_dict"], second["state_dict"])
    assert same(client_states(first), client_states(second))


class Nodes:
    """Processes that are ended after the test, with all that they have started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rounds = ROUNDS
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self,
        *command: str,
        root: str,
        number: int = 1,
        seconds: float = 0.0,
        **more: str,
    ) -> subprocess.Popen[str]:
        words = [f"--trainer.default_root_dir={root}", f"--trainer.max_epochs={self.rounds}"]
        words.append(f"--trainer.num_nodes={number}")
        process = subprocess.Popen(
            [*command, *FIT, *words, f"--model.seconds={seconds}"], cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **more}, text=True, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def wait(self) -> None:
        for process in self.processes:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error
        self.processes.clear()

    def reach(self, rank: int, round_: int) -> int:
        """Wait until a worker trains in a round; return its process."""
        at = self.folder / f"at.{rank}"
        for _ in range(1800):
            lines = at.read_text().splitlines() if at.exists() else []
            reached = [line.split()[0] for line in lines if int(line.split()[1]) >= round_]
            if reached:
                return int(reached[-1])
            time.sleep(0.1)
        pytest.fail(f"worker {rank} has not reached round {round_}")


@pytest.fixture
def nodes(base, write, tmp_path) -> Iterator[Nodes]:
    write("slow.py", SLOW)
    started = Nodes(tmp_path)
    yield started
    for process in started.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def whole(nodes, tmp_path) -> Path:
    """The folder of a run of one process."""
    nodes.start(sys.executable, root="whole")
    nodes.wait()
    (tmp_path / "at.0").unlink()
    return tmp_path / "whole"


@pytest.fixture
def namespaces() -> Iterator[list[list[str]]]:
    """The commands that run something on either of two machines with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names, addresses = [f"fl{os.getpid()}{side}" for side in "ab"], ["10.77.0.1", "10.77.0.2"]
    words = [
        *(f"netns add {name}" for name in names),
        f"link add va netns {names[0]} type veth peer name vb netns {names[1]}",
    ]
    for name, end, address in zip(names, ("va", "vb"), addresses, strict=True):
        words += [f"-n {name} addr add {address}/24 dev {end}", f"-n {name} link set {end} up"]
        words += [f"-n {name} link set lo up"]
    try:
        for line in words:
            if subprocess.run(["ip", *line.split()], capture_output=True).returncode:
                pytest.skip(f"this system does not allow `ip {line}`")
        yield [
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c",
             f'hostname {name}; exec {sys.executable} "$@"', "sh"]
            for name in names
        ]  # fmt: skip
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize("folders", ["shared", "apart"])
def test_two_nodes_have_the_bits_of_one_process_and_resume(nodes, whole, tmp_path, folders):
    def start(port: int) -> list[subprocess.Popen[str]]:
        return [
            nodes.start(
                sys.executable, root=root, number=2, seconds=0.3, NODE_RANK=str(rank),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )
            for rank, root in enumerate(["two", "two" if folders == "shared" else "other"])
        ]  # fmt: skip

    first = start(29810)
    nodes.reach(rank=0, round_=2)
    for process in first:
        process.terminate()
    for process in first:
        process.communicate(timeout=300)
        assert process.returncode == 128 + signal.SIGTERM
    nodes.processes.clear()
    assert torch.load(newest(tmp_path / "two"), weights_only=True)["epoch"] < ROUNDS - 1
    start(29811)
    nodes.wait()
    assert_same_run(tmp_path / "two", whole)


def test_two_machines_find_each_others_interface(nodes, whole, namespaces, tmp_path):
    for rank, command in enumerate(namespaces):
        nodes.start(
            *command, root=f"node{rank}", number=2, NODE_RANK=str(rank),
            MASTER_ADDR="10.77.0.1", MASTER_PORT="29820",
        )  # fmt: skip
    nodes.wait()
    assert_same_run(tmp_path / "node0", whole)


def torchrun(side: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1",
        "--max-restarts=3", "--monitor-interval=1", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:29830", f"--rdzv-id={side}", "--local-addr=127.0.0.1",
        "--rdzv-conf=last_call_timeout=3,join_timeout=60,keep_alive_interval=2,"
        "keep_alive_max_attempt=2",
    ]  # fmt: skip


def test_torchrun_goes_on_without_a_node_that_is_killed(nodes, whole, tmp_path):
    first = nodes.start(*torchrun("x"), root="elastic", seconds=0.3)
    time.sleep(1.0)
    second = nodes.start(*torchrun("x"), root="elastic", seconds=0.3)
    os.kill(nodes.reach(rank=1, round_=1), signal.SIGKILL)
    os.killpg(second.pid, signal.SIGKILL)
    nodes.processes.remove(second)
    second.communicate()
    nodes.wait()
    assert first.returncode == 0
    assert_same_run(tmp_path / "elastic", whole)


def test_torchrun_takes_a_node_in_that_comes_later(nodes, tmp_path):
    nodes.rounds = 30
    nodes.start(sys.executable, root="whole")
    nodes.wait()
    (tmp_path / "at.0").unlink()
    joining = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    nodes.start(*torchrun("y"), root="elastic", seconds=0.3, **joining)
    nodes.reach(rank=0, round_=2)
    nodes.start(*torchrun("y"), root="elastic", seconds=0.3, **joining)
    nodes.reach(rank=1, round_=3)
    nodes.wait()
    assert_same_run(tmp_path / "elastic", tmp_path / "whole")


def test_a_job_of_two_nodes_that_slurm_requeues_goes_on(nodes, whole, tmp_path):
    """As ``--requeue --signal=USR1@90`` does it: SIGUSR1 to every task, later SIGTERM."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    tool.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "fl", "SLURM_NTASKS": "2", "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1", "PATH": f"{tool.parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def start(port: str) -> list[subprocess.Popen[str]]:
        return [
            nodes.start(
                sys.executable, root="job", number=2, seconds=0.3, MASTER_PORT=port,
                SLURM_PROCID=rank, SLURM_NODEID=rank, **job,
            )
            for rank in "01"
        ]  # fmt: skip

    first = start("29840")
    nodes.reach(rank=0, round_=2)
    nodes.reach(rank=1, round_=2)
    for what in (signal.SIGUSR1, signal.SIGTERM):
        for process in first:
            process.send_signal(what)
        time.sleep(1.0)
    for process in first:
        process.communicate(timeout=300)
    nodes.processes.clear()
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    start("29841")
    nodes.wait()
    assert_same_run(tmp_path / "job", whole)


def test_no_process_is_aborted_at_its_end(nodes):
    """Gloo's threads aborted one in four."""
    for attempt in range(20):
        process = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
             *FIT, f"--trainer.default_root_dir=run{attempt}", "--trainer.max_epochs=1",
             "--model.seconds=0"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=nodes.folder, capture_output=True,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr.decode()
