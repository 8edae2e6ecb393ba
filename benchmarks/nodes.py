"""Bytes per rank and round: every update to every rank, or exact sums that are added up.

Ranks are processes on this machine; what they send is read off the loopback interface in a network
namespace of their own where the system allows it (root on Linux), else off this machine's, where
other traffic counts, too. FedAvg on a perceptron; rounds after the first one.

    python benchmarks/nodes.py
    python benchmarks/nodes.py --cohorts 10 100 --ranks 2 --parameters 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

ROUNDS = 3


def sent() -> int:
    """Return the bytes that have gone through the loopback interface."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("this system has no interface 'lo'")


def child(sums: str, cohort: int, ranks: int, parameters: int) -> None:
    """Train, and print bytes and seconds of all rounds but the first."""
    import pytorch_lightning as pl
    from growth import CLASSES, SAMPLES, Work, examples, network
    from workloads import QUIET

    from fedlightning import FedAvg, FederatedModule, FederatedTrainer, Federation
    from fedlightning.datamodules import GeneratedClients

    warnings.simplefilter("ignore")

    class Net(FederatedModule):
        def __init__(self) -> None:
            super().__init__(lr=0.05, lr_milestones=())
            layers = network(Work(parameters=parameters).width)
            self.body, self.head = layers[:-1], layers[-1]

    class Count(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                self.start, self.before = time.perf_counter(), sent()

        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            rounds = ROUNDS - 1
            if trainer.is_global_zero:
                result = {
                    "bytes": (sent() - self.before) / rounds / ranks,
                    "seconds": (time.perf_counter() - self.start) / rounds,
                }
                print(json.dumps(result), flush=True)

    FederatedTrainer(
        federation=Federation(FedAvg(sums=sums), cohort_size=cohort, seed=0), devices=ranks,
        max_epochs=ROUNDS, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[Count()],
        **QUIET,
    ).fit(
        Net(),
        GeneratedClients(
            examples, num_clients=max(cohort, 10), num_classes=CLASSES, num_train=SAMPLES,
            num_test=SAMPLES, batch_size=SAMPLES, seed=0,
        ),
    )  # fmt: skip


def measure(*given: Any) -> dict[str, float]:
    """Run one setting in processes of its own."""
    command = [sys.executable, __file__, "--child", *map(str, given)]
    if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip"):
        inside = 'ip link set lo up && exec "$@"'
        command = ["unshare", "--net", "sh", "-c", inside, "sh", *command]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{given} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result: dict[str, float] = json.loads(lines[-1])
    return result


def main() -> None:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sums, *numbers = args.child
        child(sums, *map(int, numbers))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}, ", end="")
    print(f"{args.parameters:,} parameters ({4e-6 * args.parameters:.1f} MB)\n")
    print("| cohort | ranks | every update: MB per rank | s | exact sums: MB per rank | s |")
    print("|---|---|---|---|---|---|")
    for cohort in args.cohorts:
        for ranks in args.ranks:
            cells = []
            for sums in ("float64", "exact"):
                found = measure(sums, cohort, ranks, args.parameters)
                cells.append(f"{found['bytes'] / 1e6:.2f} | {found['seconds']:.2f}")
            print(f"| {cohort} | {ranks} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
