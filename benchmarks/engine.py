"""Seconds a round: fedlightning against a hand-written loop that takes the same optimizer steps.

Every variant runs in turn, several times over, on one thread per process; a row shows the median
round and its ratio to the raw loop of the same turn. The number of optimizer steps and the accuracy
afterwards stand beside the time, so that nobody is fast by doing less.

    python benchmarks/engine.py --workloads W1 W2 --rounds 3 --turns 3
    python benchmarks/engine.py --workloads W3 --rounds 20 --only "fedlightning, grouped"
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from workloads import COHORT, data, federation, module

from fedlightning import FederatedTrainer
from fedlightning.datamodules import FederatedDataModule

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


@dataclass(frozen=True)
class Measured:
    """One variant's turn: seconds of its median round, and what it did."""

    wall: float
    cpu: float
    steps: int
    accuracy: float


def cohorts(clients: FederatedDataModule, rounds: int) -> list[tuple[int, ...]]:
    """Return the cohorts that fedlightning draws, for the others to train, too."""
    from fedlightning.seeding import Key

    return [
        federation().cohort(Key(0, "cohort", round=index), clients.num_clients, COHORT)
        for index in range(rounds)
    ]


def tensors(clients: FederatedDataModule, client: int, split: str) -> tuple[Any, Any]:
    """Return a client's transformed examples as two tensors."""
    batches = list(clients.batches(client, split))  # type: ignore[arg-type]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def accuracy(net: torch.nn.Module, clients: FederatedDataModule) -> float:
    """Return the mean accuracy over clients on their own test data."""
    net.eval()
    with torch.no_grad():
        scores = [
            (net(x).argmax(1) == y).float().mean()
            for x, y in (tensors(clients, client, "test") for client in range(20))
        ]
    return float(torch.stack(scores).mean())


def raw(workload: str, clients: FederatedDataModule, rounds: int, channels_last: bool) -> Measured:
    """Train with a plain loop: what there is to do, and nothing else."""
    net, plan = module(workload), cohorts(clients, rounds)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    stored = {c: tensors(clients, c, "train") for cohort in plan for c in cohort}
    server = {key: value.clone() for key, value in net.state_dict().items()}
    walls, cpus, steps = [], [], 0
    for cohort in plan:
        wall, cpu = time.perf_counter(), time.process_time()
        total = {key: torch.zeros_like(value) for key, value in server.items()}
        for client in cohort:
            net.load_state_dict(server)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
            x, y = stored[client]
            for rows in torch.randperm(len(y)).split(clients.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
                steps += 1
            for key, value in net.state_dict().items():
                total[key] += value / len(cohort)
        server = total
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    net.load_state_dict(server)
    return Measured(median(walls[1:]), median(cpus[1:]), steps, accuracy(net, clients))


class Stopwatch(pl.Callback):
    """Writes wall and CPU seconds of every round into a file, for whoever started the workers."""

    def __init__(self, path: Path) -> None:
        self.path, self.rounds, self.steps = path, [], 0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the round's clock."""
        self.start = time.perf_counter(), time.process_time()

    def on_aggregate_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop it: the global model is the round's."""
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        self.rounds.append((wall, cpu))
        if trainer.is_global_zero:
            self.path.write_text(json.dumps({"rounds": self.rounds, "steps": self.steps}))

    def on_train_batch_start(self, trainer: pl.Trainer, net: Any, task: Any, index: int) -> None:
        """Count the client's optimizer steps."""
        self.steps += trainer.datamodule.num_batches(task.client)


def fed(
    workload: str,
    clients: FederatedDataModule,
    rounds: int,
    channels_last: bool,
    devices: int = 1,
    clients_per_kernel: int = 1,
) -> Measured:
    """Train with fedlightning, as a user would."""
    net = module(workload)
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch(Path(folder) / "watch.json")
        several = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        trainer = FederatedTrainer(
            federation=federation(channels_last, clients_per_kernel),
            max_epochs=rounds, limit_val_batches=0,
            callbacks=[watch], **several, **QUIET,
        )  # fmt: skip
        trainer.fit(net, datamodule=clients)
        seen = json.loads(watch.path.read_text())
    walls, cpus = zip(*seen["rounds"], strict=True)
    return Measured(median(walls[1:]), median(cpus[1:]), seen["steps"], accuracy(net, clients))


def trainer_per_client(
    workload: str, clients: FederatedDataModule, rounds: int, channels_last: bool
) -> Measured:
    """Train each client with a stock Trainer of its own, as most integrations do."""
    net, plan = module(workload), cohorts(clients, rounds)
    server = {key: value.clone() for key, value in net.state_dict().items()}
    walls, cpus, steps = [], [], 0
    stored = {
        c: torch.utils.data.TensorDataset(*tensors(clients, c, "train")) for r in plan for c in r
    }
    for cohort in plan:
        wall, cpu = time.perf_counter(), time.process_time()
        total = {key: torch.zeros_like(value) for key, value in server.items()}
        for client in cohort:
            net.load_state_dict(server)
            loader = DataLoader(stored[client], batch_size=clients.batch_size, shuffle=True)
            trainer = pl.Trainer(max_epochs=1, limit_val_batches=0, **QUIET)
            trainer.fit(net, train_dataloaders=loader)
            steps += trainer.global_step
            for key, value in net.state_dict().items():
                total[key] += value / len(cohort)
        server = total
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    net.load_state_dict(server)
    return Measured(median(walls[1:]), median(cpus[1:]), steps, accuracy(net, clients))


VARIANTS = {
    "raw loop": lambda w, d, r: raw(w, d, r, False),
    "fedlightning": lambda w, d, r: fed(w, d, r, False),
    "fedlightning, grouped": lambda w, d, r: fed(w, d, r, False, clients_per_kernel=5),
    "fedlightning, 2 workers": lambda w, d, r: fed(w, d, r, False, devices=2),
    "Trainer per client": lambda w, d, r: trainer_per_client(w, d, r, False),
    "raw loop, channels last": lambda w, d, r: raw(w, d, r, True),
    "fedlightning, channels last": lambda w, d, r: fed(w, d, r, True),
    "fedlightning, grouped, channels last": lambda w, d, r: fed(
        w, d, r, True, clients_per_kernel=5
    ),
    "fedlightning, channels last, 2 workers": lambda w, d, r: fed(w, d, r, True, devices=2),
}


def main() -> None:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2"])
    parser.add_argument("--rounds", type=int, default=3, help="the first one is not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="besides the raw loop")
    args = parser.parse_args()
    variants = {
        name: run for name, run in VARIANTS.items()
        if not args.only or name in ["raw loop", *args.only]
    }  # fmt: skip
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}")
    for workload in args.workloads:
        clients = data(workload)
        turns = [
            {name: run(workload, clients, args.rounds) for name, run in variants.items()}
            for _ in range(args.turns)
        ]
        print(f"\n| {workload} | wall s | x raw | CPU s | x raw | steps | accuracy |")
        print("|---|---|---|---|---|---|---|")
        for name in variants:
            ours, base = [t[name] for t in turns], [t["raw loop"] for t in turns]
            walls = [a.wall / b.wall for a, b in zip(ours, base, strict=True)]
            cpus = [a.cpu / b.cpu for a, b in zip(ours, base, strict=True)]
            spread = f"{median(walls):.2f} ({min(walls):.2f}-{max(walls):.2f})"
            # the CPU seconds of workers are their own; rank 0's alone would flatter
            several = "workers" in name
            cpu = "" if several else f"{median(a.cpu for a in ours):.2f}"
            ratio = "" if several else f"{median(cpus):.2f} ({min(cpus):.2f}-{max(cpus):.2f})"
            print(
                f"| {name} | {median(a.wall for a in ours):.2f} | {spread} | {cpu} | {ratio} "
                f"| {ours[0].steps} | {100 * ours[0].accuracy:.1f} |"
            )


if __name__ == "__main__":
    main()
