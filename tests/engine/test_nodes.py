"""What the launchers say of nodes, the interface between them, and one checkpoint for all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import Algorithm, FedAvg
from fedlightning.engine.run_folder import RunFolder
from fedlightning.engine.workers import nodes
from fedlightning.engine.workers.cohort_exchange import dealt_out
from fedlightning.engine.workers.collectives import Workers
from fedlightning.engine.workers.nodes import (
    World,
    interface_towards,
    launched,
    nodes_and_devices,
    on_another_node,
)
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import ConfigError
from fedlightning.federation.jobs import Job
from fedlightning.storage.checkpoint_io import has_checkpoint
from fedlightning.storage.checkpoint_reader import rounds_in
from tests.toys import data, fit, net, same, state

KEPT = Algorithm(train="full", share="body")


def torchrun(monkeypatch, nodes: int, processes: int, rank: int = 0) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x", "RANK": rank, "LOCAL_RANK": 0, "GROUP_RANK": rank,
        "WORLD_SIZE": nodes * processes, "GROUP_WORLD_SIZE": nodes, "LOCAL_WORLD_SIZE": processes,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))


def slurm(monkeypatch, nodes: int, tasks: int) -> None:
    for name, value in {
        "SLURM_JOB_NAME": "fl", "SLURM_NNODES": nodes, "SLURM_NTASKS": tasks, "SLURM_NODEID": 1,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))


def test_without_a_launcher_the_numbers_are_the_users():
    assert launched() is None
    assert nodes_and_devices("auto", None) == (1, None)
    assert nodes_and_devices(3, "auto") == (3, "auto")


@pytest.mark.parametrize("given", [(1, None), ("auto", "auto"), (2, 3), (1, 1), ("auto", "3")])
def test_torchrun_decides(monkeypatch, given):
    torchrun(monkeypatch, nodes=2, processes=3)
    assert launched() == World("torchrun", 2, 3)
    assert nodes_and_devices(*given) == (2, 3)


def test_slurm_decides(monkeypatch):
    slurm(monkeypatch, nodes=2, tasks=8)
    assert nodes_and_devices(1, "auto") == (2, 4)
    assert on_another_node("auto")


@pytest.mark.parametrize(
    ("given", "name"), [((4, None), "num_nodes=4"), ((1, 5), "devices=5"), ((1, "5"), "'5'")]
)
def test_another_number_than_the_launchers_is_refused(monkeypatch, given, name):
    torchrun(monkeypatch, nodes=2, processes=3)
    with pytest.raises(ConfigError, match=rf"{name}.* torchrun has started 2 node\(s\) with 3 "):
        nodes_and_devices(*given)


def test_a_rank_of_a_node_counts_among_several_nodes_only(monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    assert not on_another_node(1)
    assert on_another_node(2)
    monkeypatch.setenv("NODE_RANK", "0")
    assert not on_another_node(2)


def test_the_interface_is_that_of_the_route(monkeypatch):
    known = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "eth1": "10.1.0.5"}
    routes = {
        "10.1.0.9": "10.1.0.5", "localhost": "127.0.0.1", "me": "127.0.1.1",
        nodes._ELSEWHERE: "10.0.0.5", "nowhere": None,
    }  # fmt: skip
    monkeypatch.setattr(nodes, "_interfaces", lambda: known)
    monkeypatch.setattr(nodes, "_local_address", routes.get)
    assert interface_towards("10.1.0.9") == "eth1"
    assert interface_towards("localhost") == "lo"
    assert interface_towards("me") == "eth0"  # this machine's name, as Debian resolves it
    assert interface_towards("nowhere") is None


def test_auto_starts_and_then_resumes(tmp_path):
    assert not has_checkpoint(tmp_path)
    fit(net(), KEPT, rounds=2, cohort=3, folder=tmp_path, ckpt="auto")
    assert has_checkpoint(tmp_path)
    module = net(seed=5)
    resumed = fit(module, KEPT, rounds=2, cohort=3, folder=tmp_path, ckpt="auto")
    [last] = tmp_path.rglob("last.ckpt")
    saved = torch.load(last, weights_only=True)
    assert rounds_in(saved) == resumed.current_epoch == 2
    assert same(saved["state_dict"], state(module))


class Began(pl.Callback):
    """Writes down in which round each worker begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer, pl_module):
        with self.path.open("a") as file:
            print(trainer.current_epoch, file=file)


def test_a_worker_that_has_found_another_checkpoint_takes_the_first_ones(tmp_path, monkeypatch):
    for rounds in (1, 2):
        fit(net(), KEPT, rounds=rounds, cohort=3, folder=tmp_path / str(rounds))
    found = [next((tmp_path / str(rounds)).rglob("last.ckpt")) for rounds in (1, 2)]
    stock = RunFolder.agreed
    monkeypatch.setattr(
        RunFolder, "agreed", lambda self, path: stock(self, found[self._trainer.global_rank])
    )
    fit(
        net(seed=4), KEPT, rounds=2, cohort=3, folder=tmp_path, accelerator="cpu", devices=2,
        strategy="ddp_fork", callbacks=[Began(tmp_path / "began")], ckpt=found[0],
    )  # fmt: skip
    assert (tmp_path / "began").read_text().split() == ["1", "1"]


@pytest.mark.parametrize("what", ["round", "seed"])
def test_workers_of_different_runs_are_refused(monkeypatch, what):
    built = fit(net(), KEPT, rounds=1, cohort=3)
    loop = built.federated_loop
    mine = loop.rounds_aggregated, loop._settings
    other = (7, mine[1]) if what == "round" else (mine[0], {**mine[1], "seed": "9"})
    monkeypatch.setattr(Workers, "gather", lambda self, value: [value, other])
    says = "begins in round 7, worker 0 in round 1" if what == "round" else "has seed: 9, worker 0 "
    with pytest.raises(ConfigError, match=f"^worker 1 {says}"):
        loop._check_same_run()


def test_a_run_that_went_well_ends_with_5_if_a_worker_did_not():
    code = """
import subprocess, sys
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
strategy = FederatedDDPStrategy()
strategy._children = [subprocess.Popen([sys.executable, "-c", "import os; os.abort()"])]
strategy.end_children()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 5
    assert ended.stderr.splitlines()[-1] == "error: worker 1 died (signal 6) after the run"


class SlowSecond(pl.Callback):
    """Counts the clients that each worker trains; the second one is slow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_client_trained(self, trainer, pl_module):
        if trainer.global_rank == 1:
            time.sleep(0.4)
        with (self.folder / f"trained.{trainer.global_rank}").open("a") as file:
            file.write("x")


@pytest.mark.parametrize("algorithm", [KEPT, FedAvg(sums="exact")], ids=["sent", "added apart"])
def test_a_slow_machine_gets_fewer_clients_and_the_bits_are_the_same(algorithm, tmp_path):
    clients = data((8,) * 8)
    one = net()
    fit(one, algorithm, rounds=2, datamodule=clients)
    fit(
        net(), algorithm, rounds=2, folder=tmp_path, datamodule=data((8,) * 8), devices=2,
        accelerator="cpu", callbacks=[SlowSecond(tmp_path)],
        strategy=FederatedDDPStrategy(start_method="fork", deals_out=True),
    )  # fmt: skip
    first, second = ((tmp_path / f"trained.{rank}").read_text() for rank in (0, 1))
    assert len(first) + len(second) == 2 * 8
    assert len(first) > len(second) >= 2
    [last] = tmp_path.rglob("last.ckpt")
    assert same(torch.load(last, weights_only=True)["state_dict"], state(one))


def test_the_longest_clients_are_dealt_first_and_a_clients_jobs_stay_together():
    jobs = [Job(client, 0, place) for place, client in enumerate((5, 3, 5, 9))]
    numbers = iter(range(10))
    assert list(dealt_out(jobs, [2, 5, 2, 1], lambda: next(numbers))) == [[1], [0, 2], [3]]
