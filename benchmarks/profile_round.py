"""Where one round's CPU time goes: kernels by kind, and what is around them.

python benchmarks/profile_round.py --workloads W1 W2
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
import warnings
from collections import Counter
from datetime import date
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile
from workloads import QUIET, data, federation, module

from fedlightning import FederatedTrainer

KINDS = {
    "convolutions": ("conv",),
    "BatchNorm": ("batch_norm",),
    "pooling": ("pool",),
    "linear layers": ("mm", "linear"),
    "ReLU": ("relu", "clamp_min", "threshold"),
    "loss": ("softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("fused_sgd", "_foreach", "Optimizer"),
    "batches": ("index_select", "randperm"),
}


class Profile(pl.Callback):
    """Profiles the second round; the first pays for what is made once."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start."""
        if trainer.current_epoch == 1:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.__enter__()
            self.start = time.process_time()

    def on_aggregate_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop."""
        if trainer.current_epoch == 1:
            self.seconds = time.process_time() - self.start
            self.profiler.__exit__(None, None, None)


def kind_of(operation: str) -> str:
    """Return what an operation counts as."""
    found = (kind for kind, parts in KINDS.items() if any(part in operation for part in parts))
    return next(found, "other kernels")


def main() -> None:
    """Profile and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    clients, shares = data(), {}
    for workload in args.workloads:
        watch = Profile()
        FederatedTrainer(
            federation=federation(), max_epochs=2, limit_val_batches=0, callbacks=[watch], **QUIET
        ).fit(module(workload), clients)
        seconds: Counter[str] = Counter()
        for event in watch.profiler.key_averages():
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
        seconds["Python, autograd, Lightning, fedlightning"] = watch.seconds - seconds.total()
        shares[workload] = {kind: value / watch.seconds for kind, value in seconds.items()}
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}, percent of CPU time\n")
    print(f"| | {' | '.join(args.workloads)} |")
    print(f"|---|{'---|' * len(args.workloads)}")
    for kind in [*KINDS, "other kernels", "Python, autograd, Lightning, fedlightning"]:
        cells = [f"{100 * shares[workload].get(kind, 0):.1f}" for workload in args.workloads]
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
