"""Two workers give the bits of one, for all algorithms, in one launch of two processes."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes

from tests.algorithms.cases import ALGORITHMS, Faulty, everything, run, whole
from tests.toys import net, same

RETRIED = ["SCAFFOLD", "Ditto", "FedRep"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder with what both workers of all runs have ended with."""
    found = tmp_path_factory.mktemp("workers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_work, (port, found), nprocs=2, start_method="fork")
    return found


def _work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    for name in ALGORITHMS:
        torch.save(everything(run(name, **two)), folder / f"{name} {rank}")
    warnings.filterwarnings("ignore", "client 2, round 1: .* bad luck")
    for name in RETRIED:
        module = net(module=Faulty, at=(1, 3))
        built = run(name, module, federation={"on_client_failure": "retry"}, **two)
        torch.save(everything(built), folder / f"{name}, retried {rank}")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", [*ALGORITHMS, *(f"{name}, retried" for name in RETRIED)])
def test_two_workers_give_the_bits_of_one(name, folder):
    alone = everything(whole(name.removesuffix(", retried")))
    for rank in range(2):
        assert same(torch.load(folder / f"{name} {rank}", weights_only=True), alone)
