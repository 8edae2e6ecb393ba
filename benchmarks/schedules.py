"""What asynchronous training costs and gains: planning, versions in memory, two workers.

    python benchmarks/schedules.py planning             # events a second, by number of clients
    python benchmarks/schedules.py memory               # versions kept, by updates under way
    python benchmarks/schedules.py workers --turns 3    # W2 with one and two workers

`planning` plans and trains nobody. `workers` runs W2 (Fashion-MNIST from Debian's package
`dataset-fashion-mnist`) in processes of their own, in turn: rounds of ten clients, and a buffer of
ten arrivals with a hundred clients of several speeds at work. Timings are comparable within one
call only.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any


def planning(args: argparse.Namespace) -> None:
    """Print events a second of plans, with a small cohort and with all clients at work."""
    from fedlightning.core.seeding import Key
    from fedlightning.federation import Buffered, LogNormal
    from fedlightning.federation.jobs import Population
    from fedlightning.federation.sampling import UniformSampler, choose

    print("| clients | at work | buffer | events a second | start in seconds | peak MB |")
    print("|---|---|---|---|---|---|")
    for clients in args.clients:
        for cohort in dict.fromkeys((min(100, clients), clients)):
            for buffer in (1, 10):

                def draw(commit: int, size: int, again: int, n: int = clients) -> tuple[int, ...]:
                    return choose(UniformSampler(), Key(0, "cohort", commit, epoch=again), n, size)

                population = Population(
                    0, range(clients), cohort, lambda commit, c=cohort: draw(commit, c, 0),
                    num_examples=lambda client: 10, sample=draw,
                )  # fmt: skip
                schedule = Buffered(buffer, LogNormal(1.0))
                began = time.perf_counter()
                _, state = schedule.next(schedule.start(population), population)
                started = time.perf_counter() - began
                began, commits = time.perf_counter(), max(args.events // buffer, 1)
                for _ in range(commits):
                    _, state = schedule.next(state, population)
                rate = commits * buffer / (time.perf_counter() - began)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(
                    f"| {clients:,} | {cohort:,} | {buffer} | {rate:,.0f} | {started:.2f} "
                    f"| {peak:,.0f} |",
                    flush=True,
                )


def memory(args: argparse.Namespace) -> None:
    """Print how many versions a run keeps and what they weigh, by updates under way."""
    import torch
    from torch import nn
    from workloads import QUIET

    from fedlightning import FedAvg, FederatedModule, FederatedTrainer, Federation
    from fedlightning.datamodules import ClientDatasets
    from fedlightning.federation import Buffered, Exponential

    class Net(FederatedModule):
        def __init__(self) -> None:
            super().__init__(lr=0.01, lr_milestones=())
            self.body, self.head = nn.Linear(512, 512), nn.Linear(512, 2)

    rows = torch.randn(4, 512), torch.tensor([0, 1, 0, 1])
    print("| updates under way | buffer | versions kept | MB of versions | model MB |")
    print("|---|---|---|---|---|")
    for at_work in args.at_work:
        for buffer in (1, 10):
            if buffer > at_work:
                continue
            data = ClientDatasets([rows] * at_work, [rows] * at_work, num_classes=2)
            schedule = Buffered(buffer, Exponential(1.0))
            federation = Federation(algorithm=FedAvg(), cohort_size=1.0, schedule=schedule, seed=0)
            settings = {**QUIET, "limit_val_batches": 0, "num_sanity_val_steps": 0}
            trainer = FederatedTrainer(federation=federation, max_epochs=args.commits, **settings)
            module = Net()
            trainer.fit(module, datamodule=data)
            versions = trainer.fit_loop.server.versions()
            size = sum(
                tensor.nbytes
                for version in versions.values()
                for tensor in version["model"].values()
            )
            model = sum(tensor.nbytes for tensor in module.state_dict().values())
            print(
                f"| {at_work} | {buffer} | {len(versions)} | {size / 2**20:.1f} "
                f"| {model / 2**20:.2f} |",
                flush=True,
            )


CASES = {
    "rounds of 10": ("synchronous", 1),
    "rounds of 10, 2 workers": ("synchronous", 2),
    "buffer of 10": ("buffered", 1),
    "buffer of 10, 2 workers": ("buffered", 2),
}


def workers(args: argparse.Namespace) -> None:
    """Print seconds a commit of W2, with and without a second worker."""
    from measuring import run_measured

    walls: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(args.turns):
        order = list(CASES) if turn % 2 == 0 else list(reversed(CASES))
        for name in order:
            measured = run_measured(
                [sys.executable, __file__, "one", "--case", name, "--commits", str(args.commits)]
            )
            if measured.returncode:
                sys.exit(measured.error)
            walls[name].append(median(measured.round_walls[1:]))
    print("| | seconds a commit, median of turns | beside one worker |")
    print("|---|---|---|")
    for name, (kind, count) in CASES.items():
        single = next(other for other, case in CASES.items() if case == (kind, 1))
        ratios = [alone / both for alone, both in zip(walls[single], walls[name], strict=True)]
        gain = "" if count == 1 else f"{median(ratios):.2f}x as fast"
        print(f"| {name} | {median(walls[name]):.2f} | {gain} |")


def one(args: argparse.Namespace) -> None:
    """Train W2 once and print the marks of its commits as JSON."""
    import pytorch_lightning as pl
    from workloads import QUIET, data, module

    from fedlightning import FedAvg, FederatedTrainer, Federation
    from fedlightning.federation import Buffered, LogNormal

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.first_step, self.marks = 0.0, [time.time()]

        def on_train_batch_start(self, *_: Any) -> None:
            self.first_step = self.first_step or time.time()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.marks.append(time.time())

    kind, count = CASES[args.case]
    schedule = Buffered(10, LogNormal(1.0)) if kind == "buffered" else None
    federation = Federation(
        algorithm=FedAvg(), cohort_size=100 if kind == "buffered" else 10, schedule=schedule, seed=0
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            federation=federation, max_epochs=args.commits, default_root_dir=Path(folder),
            devices=count, callbacks=[clock], limit_val_batches=0, num_sanity_val_steps=0, **QUIET,
        )  # fmt: skip
        trainer.fit(module("W2"), datamodule=data())
    if trainer.is_global_zero:
        print(json.dumps({"first_step": clock.first_step, "marks": clock.marks}))


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["planning", "memory", "workers", "one"])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--at-work", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--commits", type=int, default=None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES))
    args = parser.parse_args()
    if args.commits is None:
        args.commits = 300 if args.what == "memory" else 6
    if args.what != "one":
        print(f"{date.today()}, {platform.processor() or platform.machine()}, one process\n")
    {"planning": planning, "memory": memory, "workers": workers, "one": one}[args.what](args)


if __name__ == "__main__":
    main()
