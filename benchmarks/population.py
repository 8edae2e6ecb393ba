"""What a large population costs: 10 samples a client, 50 clients a round, of 100 to 1,000,000.

Each population runs in a process of its own, all of them in turn, several times over. A run has
everything that runs have by default (metrics and partition in files, a checkpoint after every
round) and one evaluation at its end. A round is timed from its start to that of the next one.

    python benchmarks/population.py --turns 3 --rounds 40
    python benchmarks/population.py --turns 3 --rounds 40 --keep      # clients keep their heads
    python benchmarks/population.py --turns 3 --rounds 40 --cache 1   # examples are always made
    python benchmarks/population.py --turns 3 --data pool  # one sample a client; the pool grows
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

COHORT, SAMPLES, FEATURES, CLASSES = 50, 10, 64, 10


def examples(client: int, split: str) -> tuple[Any, Any]:
    """Return a client's examples: the class is the largest of the first features."""
    import numpy as np

    rng = np.random.default_rng([client, split == "test"])
    inputs = rng.random((SAMPLES, FEATURES), np.float32)
    return inputs, inputs[:, :CLASSES].argmax(axis=1)


def data(kind: str, clients: int, cache: int) -> Any:
    """Return the clients' data."""
    import numpy as np

    from fedlightning.datamodules import FederatedArrays, GeneratedClients

    common = {"num_clients": clients, "num_classes": CLASSES, "eval_clients": 100, "seed": 0}
    if kind == "generated":
        return GeneratedClients(
            examples, num_train=SAMPLES, num_test=SAMPLES, cache_size=cache, **common
        )
    rng = np.random.default_rng(0)
    inputs = rng.random((clients, FEATURES), np.float32)
    pool = inputs, inputs[:, :CLASSES].argmax(axis=1)
    return FederatedArrays(pool, (inputs[:100], pool[1][:100]), **common)


def run(args: argparse.Namespace) -> None:
    """Train with one population and print what it cost as JSON."""
    import pytorch_lightning as pl
    from torch import nn

    from fedlightning import Algorithm, FedAvg, FederatedModule, FederatedTrainer, Federation

    class Net(FederatedModule):
        def __init__(self) -> None:
            super().__init__(lr=0.05, lr_milestones=())
            self.body = nn.Sequential(nn.Linear(FEATURES, 200), nn.ReLU())
            self.head = nn.Linear(200, CLASSES)

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.marks: list[tuple[float, float]] = []
            self.first_step = 0.0

        def on_train_epoch_start(self, *_: Any) -> None:
            self.marks.append((time.perf_counter(), time.process_time()))

        def on_train_batch_start(self, *_: Any) -> None:
            self.first_step = self.first_step or time.time()

    pl.seed_everything(0, verbose=False)
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        trainer = FederatedTrainer(
            federation=Federation(
                algorithm=Algorithm(train="full", share="body") if args.keep else FedAvg(),
                cohort_size=COHORT,
            ),
            max_epochs=args.rounds, check_val_every_n_epoch=args.rounds, num_sanity_val_steps=0,
            default_root_dir=folder, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, callbacks=[clock],
        )  # fmt: skip
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the closing summary
        trainer.fit(Net(), datamodule=data(args.data, args.clients[0], args.cache))
        sys.stdout = sys.__stdout__
        [checkpoint] = Path(folder).rglob("last.ckpt")
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        rounds = list(pairwise(clock.marks))
        spans = [[after[i] - before[i] for before, after in rounds] for i in (0, 1)]
        # the first rounds warm up: allocator, lazily imported modules
        result = {
            "wall": median(spans[0][3:]),
            "cpu": median(spans[1][3:]),
            "least": min(spans[1][3:]),
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "start": clock.first_step - float(os.environ["STARTED"]),
            "checkpoint": checkpoint.stat().st_size,
            "folder": sum(path.stat().st_size for path in files),
        }
    print(json.dumps(result))


def measure(clients: int, arguments: list[str]) -> dict[str, float]:
    """Run one population in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--clients", str(clients), "--child"]
    environment = {**os.environ, "STARTED": str(time.time()), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", choices=["generated", "pool"], default="generated")
    parser.add_argument(
        "--cache", type=int, default=64,
        help="clients whose generated examples stay; of 100 clients the default is most",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="clients keep their heads")
    parser.add_argument("--folder", help="where the runs may write; they are removed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run(args)
        return
    passed = ["--rounds", str(args.rounds), "--data", args.data, *["--keep"] * args.keep]
    passed += ["--cache", str(args.cache)]
    passed += ["--folder", args.folder] if args.folder else []
    turns = [{n: measure(n, passed) for n in args.clients} for _ in range(args.turns)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}, {' '.join(passed)}\n")
    print(
        "| clients | s a round | | CPU s a round | | CPU s, fastest round | | peak RSS MB | "
        "| start-up s | | checkpoint bytes | folder bytes |"
    )
    print("|" + "---|" * 13)
    base = args.clients[0]
    for n in args.clients:
        cells = [f"{n:,}"]
        for name, form in (
            ("wall", ".4f"),
            ("cpu", ".4f"),
            ("least", ".4f"),
            ("rss", ".0f"),
            ("start", ".2f"),
        ):
            cells.append(format(median(turn[n][name] for turn in turns), form))
            if name in (
                "wall",
                "cpu",
                "least",
            ):  # of the same turn, so that a busy minute hits both
                ratio = median(turn[n][name] / turn[base][name] for turn in turns)
                cells.append("" if n == base else f"{100 * (ratio - 1):+.0f} %")
            else:
                more = median(turn[n][name] - turn[base][name] for turn in turns)
                cells.append("" if n == base else f"{more:+.1f}")
        cells += [f"{turns[-1][n][name]:,}" for name in ("checkpoint", "folder")]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
