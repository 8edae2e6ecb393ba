"""What a client costs on top of its steps: 200 clients with one small step each, beside a loop.

python benchmarks/per_client.py --turns 5
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
import warnings
from datetime import date
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from workloads import QUIET

from fedlightning import FedAvg, FederatedTrainer, Federation
from fedlightning.datamodules import ClientDatasets
from fedlightning.models import MLP

CLIENTS, BATCH, ROUNDS = 200, 10, 6


class Watch(pl.Callback):
    """Notes the CPU seconds of every round."""

    def __init__(self) -> None:
        self.rounds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start."""
        self.start = time.process_time()

    def on_aggregate_end(self, *_: Any) -> None:
        """Stop."""
        self.rounds.append(time.process_time() - self.start)


class Remembering(MLP):
    """Holds what is put back after each client: a list, a number and a hidden state."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[int] = []
        self.count = 0
        self.hidden: torch.Tensor | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Change all of it."""
        self.seen.append(batch_idx)
        self.count += 1
        self.hidden = batch[0].mean(dim=0)
        return super().training_step(batch, batch_idx)


def fed(x: torch.Tensor, y: torch.Tensor, module: type[MLP] = MLP) -> float:
    """Return the CPU seconds of the median round."""
    pairs, watch = list(zip(x, y, strict=True)), Watch()
    FederatedTrainer(
        federation=Federation(FedAvg(), cohort_size=CLIENTS, seed=0), max_epochs=ROUNDS,
        limit_val_batches=0, callbacks=[watch], **QUIET,
    ).fit(
        module(in_features=64, lr=0.01, lr_milestones=()),
        ClientDatasets(train=pairs, test=pairs, batch_size=BATCH, num_classes=10),
    )  # fmt: skip
    return median(watch.rounds[1:])


def raw(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the same of a plain loop."""
    net, rounds = MLP(in_features=64), []
    server = {key: value.clone() for key, value in net.state_dict().items()}
    for _ in range(ROUNDS):
        start = time.process_time()
        total = {key: torch.zeros_like(value) for key, value in server.items()}
        for client in range(CLIENTS):
            net.load_state_dict(server)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
            rows = torch.randperm(BATCH)
            F.cross_entropy(net(x[client][rows]), y[client][rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            for key, value in net.state_dict().items():
                total[key] += value / CLIENTS
        server = total
        rounds.append(time.process_time() - start)
    return median(rounds[1:])


def main() -> None:
    """Measure in turn and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--remembering", action="store_true",
        help="also measure a module whose attributes change and are put back",
    )  # fmt: skip
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(CLIENTS, BATCH, 64), torch.randint(10, (CLIENTS, BATCH))
    turns = [(raw(x, y), fed(x, y)) for _ in range(args.turns)]
    plain = 1000 * median(before for before, _ in turns) / CLIENTS
    extra = [1000 * (after - before) / CLIENTS for before, after in turns]
    print(
        f"{platform.machine()}, {date.today()}: a client of one step takes {plain:.2f} ms of CPU "
        f"in a plain loop, and {median(extra):.2f} ms more here ({min(extra):.2f} to "
        f"{max(extra):.2f} over {args.turns} turns)"
    )
    if args.remembering:
        pairs = [(fed(x, y), fed(x, y, Remembering)) for _ in range(args.turns)]
        more = [1000 * (after - before) / CLIENTS for before, after in pairs]
        print(
            f"a module whose attributes change takes {median(more):.2f} ms more ({min(more):.2f} "
            f"to {max(more):.2f})"
        )


if __name__ == "__main__":
    main()
