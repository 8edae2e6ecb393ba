"""How a round's seconds and memory grow with clients, cohort, parameters and workers.

One quantity at a time is varied over decades, beside a hand-written loop over the same work. Each
point is a process of its own; seconds are wall seconds of the median round, memory is the peak of
the process tree. An exponent is the slope of a straight line through the logarithms: 0 is "does not
grow", 1 is proportional. ``last`` is that of the last decade, where constants weigh least.

    python benchmarks/growth.py
    python benchmarks/growth.py --axes cohort parameters --largest 1000000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

import numpy as np
from measuring import Measured, run_measured

FEATURES, CLASSES, SAMPLES, ROUNDS = 64, 10, 10, 6


@dataclass(frozen=True)
class Work:
    """What one round is: a perceptron with two hidden layers, one step per client."""

    clients: int = 10_000
    cohort: int = 50
    parameters: int = 10_000
    workers: int = 1

    @property
    def width(self) -> int:
        """Units of each hidden layer, so that the network has about ``parameters`` weights."""
        others = FEATURES + CLASSES
        return max(round((math.sqrt(others**2 + 4 * self.parameters) - others) / 2), 1)


AXES: dict[str, list[Work]] = {
    "clients": [Work(clients=10**n) for n in range(2, 7)],
    "cohort": [Work(cohort=10**n) for n in range(1, 5)],
    "parameters": [Work(parameters=10**n, cohort=4) for n in range(4, 9)],
    "workers": [Work(parameters=10**6, cohort=100, workers=n) for n in (1, 2, 4, 8, 16)],
}


def examples(client: int, split: str) -> tuple[Any, Any]:
    """Return a client's examples: the class is the largest of the first features."""
    rng = np.random.default_rng([client, split == "test"])
    inputs = rng.random((SAMPLES, FEATURES), np.float32)
    return inputs, inputs[:, :CLASSES].argmax(axis=1)


def network(width: int) -> Any:
    """Return the network, always with the same weights."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip


def raw(work: Work) -> list[float]:
    """Return ``time.time()`` at the start and after every round of a plain loop."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    net, rng, marks = network(work.width), np.random.default_rng(0), [time.time()]
    server = {key: value.clone() for key, value in net.state_dict().items()}
    for _ in range(ROUNDS):
        total = {key: torch.zeros_like(value) for key, value in server.items()}
        for client in rng.choice(work.clients, work.cohort, replace=False):
            net.load_state_dict(server)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
            x, y = map(torch.from_numpy, examples(int(client), "train"))
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            for key, value in net.state_dict().items():
                total[key] += value / work.cohort
        server = total
        marks.append(time.time())
    return marks


def ours(work: Work) -> list[float]:
    """Return the same of fedlightning."""
    import pytorch_lightning as pl
    from workloads import QUIET

    from fedlightning import FedAvg, FederatedModule, FederatedTrainer, Federation
    from fedlightning.datamodules import GeneratedClients

    class Net(FederatedModule):
        def __init__(self) -> None:
            super().__init__(lr=0.05, lr_milestones=())
            layers = network(work.width)
            self.body, self.head = layers[:-1], layers[-1]

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.marks.append(time.time())

        def on_train_end(self, *_: Any) -> None:
            self.marks.append(time.time())

    clock = Clock()
    FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=work.cohort, seed=0), max_epochs=ROUNDS,
        limit_val_batches=0, num_sanity_val_steps=0, callbacks=[clock],
        devices=work.workers, **QUIET,
    ).fit(
        Net(),
        GeneratedClients(
            examples, num_clients=work.clients, num_classes=CLASSES, num_train=SAMPLES,
            num_test=SAMPLES, batch_size=SAMPLES, seed=0,
        ),
    )  # fmt: skip
    return clock.marks


def measure(kind: str, work: Work) -> tuple[float, float]:
    """Return seconds of the median round and the peak in MiB, of a process of its own."""
    given = [str(value) for value in (work.clients, work.cohort, work.parameters, work.workers)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    measured: Measured = run_measured(
        [sys.executable, __file__, "--child", kind, *given], environment
    )
    if measured.returncode:
        raise SystemExit(f"{kind} {work} ended with {measured.returncode}:\n{measured.error}")
    return median(measured.round_walls[1:]), measured.peak_memory_mb


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(axis: str, points: Sequence[Work], turns: int) -> None:
    """Measure one axis and print its table and exponents."""
    sizes = [getattr(work, axis) for work in points]
    # without workers of its own, the plain loop is measured once
    kinds = ["ours"] if axis == "workers" else ["ours", "raw"]
    found: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in kinds}
    for _ in range(turns):
        for kind in kinds:
            found[kind].append([measure(kind, work) for work in points])
    print(f"\n| {axis} | " + " | ".join(f"{k}: s a round | {k}: MiB" for k in kinds) + " |")
    print("|---" * (1 + 2 * len(kinds)) + "|")
    medians = {
        kind: [
            [median(turn[i][j] for turn in found[kind]) for i in range(len(points))] for j in (0, 1)
        ]
        for kind in kinds
    }
    for i, size in enumerate(sizes):
        cells = [f"{medians[kind][0][i]:.4f} | {medians[kind][1][i]:.0f}" for kind in kinds]
        print(f"| {size:,} | " + " | ".join(cells) + " |")
    for label, part in (("exponent", slice(None)), ("last", slice(-2, None))):
        cells = [
            f"{exponent(sizes[part], medians[kind][j][part]):.2f}" for kind in kinds for j in (0, 1)
        ]
        print(f"| *{label}* | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure and print one Markdown table per axis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--largest", type=int, help="leave out points above this size")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        warnings.simplefilter("ignore")
        kind, *numbers = args.child
        print(json.dumps({"marks": {"ours": ours, "raw": raw}[kind](Work(*map(int, numbers)))}))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}, turns: {args.turns}")
    for axis in args.axes:
        points = [
            work
            for work in AXES[axis]
            if (axis != "workers" or work.workers <= (os.cpu_count() or 1))
            and (args.largest is None or getattr(work, axis) <= args.largest)
        ]
        table(axis, points, args.turns)


if __name__ == "__main__":
    main()
