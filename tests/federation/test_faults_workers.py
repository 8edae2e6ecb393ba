"""Clients that fail on several workers: agreed by all, with the bits of one process."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from fedlightning import Algorithm
from fedlightning.errors import FederationError
from tests.toys import Net, client_states, data, loop_of, net, same, trainer

KEPT = Algorithm(train="full", share="body")
SIZES = (8, 6, 7, 6, 11)
BAD = {1: (7,), 2: (7, 11)}  # sizes of the clients that fail, by round: 2, then 2 and 4


class Faulty(Net):
    """Some clients fail in some rounds: always, or at the first try only."""

    def __init__(self, once: bool = False, **kwargs) -> None:
        super().__init__(dropout=0.3, **kwargs)
        self.once, self.memory = once, SimpleNamespace(failed=set())

    def on_train_start(self):
        self.seen = 0

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen += len(batch[1])
        round_ = self.trainer.current_epoch
        if self.seen not in BAD.get(round_, ()) or (round_, self.seen) in self.memory.failed:
            return
        if self.once:
            self.memory.failed.add((round_, self.seen))
        if self.seen == 7:
            raise ValueError("bad luck")
        with torch.no_grad():
            self.head.bias[0] = float("nan")


class Note(pl.Callback):
    """Writes down, on every worker, which failures it is told of, and between which clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, trainer, text):
        with (self.folder / f"events.{trainer.global_rank}").open("a") as file:
            file.write(text + "\n")

    def on_client_failure(self, trainer, pl_module, failure):
        self.note(trainer, f"{failure.cause} {failure.client} {failure.round} {failure.retried}")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(trainer, f"end {batch.client} {'failure' in outputs}")


def run(folder: Path, devices: int, policy: str, once: bool = False, **federation):
    folder.mkdir()
    workers = {"accelerator": "cpu", "devices": devices, "strategy": "ddp_fork"}
    built = trainer(
        KEPT, rounds=4, cohort=4, folder=folder, callbacks=[Note(folder)],
        federation={"on_client_failure": policy, **federation},
        **(workers if devices > 1 else {}),
    )  # fmt: skip
    loop_of(built).cohort = [(0, 1, 3, 4), (4, 2, 0, 1), (1, 2, 3, 4), (2, 4, 0, 3)].__getitem__
    built.fit(net(module=Faulty, once=once), datamodule=data(SIZES))
    return folder


def saved(folder: Path):
    return torch.load(next(folder.rglob("last.ckpt")), weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    first, second = saved(one), saved(other)
    assert same(first["state_dict"], second["state_dict"])
    assert first["global_step"] == second["global_step"]
    assert same(client_states(first), client_states(second))
    tables = [next(folder.rglob("metrics.csv")).read_text() for folder in (one, other)]
    assert tables[0] == tables[1]


@pytest.mark.filterwarnings("ignore:client ")
@pytest.mark.parametrize("policy", ["skip", "retry"])
def test_any_number_of_workers_gives_the_same_bits_whoever_fails(policy, tmp_path):
    once = policy == "retry"
    alone = run(tmp_path / "1", 1, policy, once)
    for devices in (2, 3):
        several = run(tmp_path / str(devices), devices, policy, once)
        assert_same_run(alone, several)
        for rank in range(devices):
            events = (several / f"events.{rank}").read_text()
            assert events == (alone / "events.0").read_text()
    with next(alone.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    names = ("clients/succeeded", "clients/failed_exception", "clients/failed_non_finite")
    counts = [[float(row[name]) for name in names] for row in rows]
    whole = [4, 0, 0]
    assert counts == [whole, [3, 1, 0], [2, 1, 1], whole] if policy == "skip" else [whole] * 4


def test_retried_runs_are_those_without_a_fault(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="tried again"):
        retried = run(tmp_path / "faulty", 1, "retry", once=True)
    monkeypatch.setattr(sys.modules[__name__], "BAD", {})
    healthy = run(tmp_path / "healthy", 1, "retry")
    assert same(saved(retried)["state_dict"], saved(healthy)["state_dict"])


@pytest.mark.filterwarnings("ignore:client ")
@pytest.mark.parametrize(
    ("policy", "federation", "message"),
    [
        ("fail", {}, "client 2, round 1: ValueError: bad luck"),
        ("retry", {"max_retries": 1}, "client 2, round 1: .* \\(after 2 tries\\)"),
        ("skip", {"min_clients": 3}, "round 2: 2 of 4 clients succeeded"),
    ],
    ids=["fail", "retry", "skip"],
)
def test_a_run_that_cannot_go_on_ends_on_every_worker(policy, federation, message, tmp_path):
    with pytest.raises(Exception, match=message) as raised:
        run(tmp_path / "run", 2, policy, **federation)
    assert raised.type is FederationError or "ProcessRaised" in raised.typename
    assert saved(tmp_path / "run")["epoch"] == (1 if policy == "skip" else 0)
