"""CPU time of evaluating and fine-tuning many small clients, beside a plain loop over their data.

Each client has twenty training and ten test examples in memory. "Evaluate" measures loss and
accuracy of one model on every client's test data; "fine-tune" trains all parameters for two epochs
on every client's training data, and measures before and after. The plain loop makes the same
batches, runs the same kernels (channels last, unfused SGD) and computes the same metrics.

    python benchmarks/evaluation.py --turns 3
    python benchmarks/evaluation.py --nets MLP --clients 10000 --work evaluate
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
import warnings
from collections.abc import Callable
from datetime import date
from statistics import mean, median
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from workloads import QUIET, LeNet

from fedlightning import FedAvg, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.datamodules import FederatedArrays, NaturalIds
from fedlightning.models import MLP

TRAIN, TEST, BATCH, EPOCHS, LR = 20, 10, 10, 2, 0.01
NETS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "MLP": (lambda: MLP(in_features=64, lr=LR, lr_milestones=()), (64,)),
    "LeNet": (LeNet, (1, 28, 28)),
}
Clients = list[tuple[torch.Tensor, torch.Tensor]]


class Evaluations(pl.Callback):
    """Notes the CPU seconds of a test epoch."""

    def on_test_epoch_start(self, *_: Any) -> None:
        """Start."""
        self.start = time.process_time()

    def on_test_end(self, *_: Any) -> None:
        """Stop."""
        self.seconds = time.process_time() - self.start


class Fed:
    """fedlightning: a test of the module, and its fine-tuning."""

    def __init__(self, net: str, train: Clients, test: Clients) -> None:
        self.module = network(net)
        owners = np.arange(len(train))
        self.data = FederatedArrays(
            *(tuple(torch.cat(part) for part in zip(*of, strict=True)) for of in (train, test)),
            partition=NaturalIds(owners.repeat(TRAIN), owners.repeat(TEST)),
            num_classes=10, batch_size=BATCH, check_data="off",
        )  # fmt: skip

    def _trainer(self, *callbacks: pl.Callback) -> FederatedTrainer:
        return FederatedTrainer(
            federation=Federation(FedAvg(), seed=0), callbacks=list(callbacks), **QUIET
        )

    def evaluate(self) -> tuple[float, float]:
        """Return CPU seconds, and the mean accuracy over clients."""
        watch = Evaluations()
        [scores] = self._trainer(watch).test(self.module, datamodule=self.data, verbose=False)
        return watch.seconds, scores["global/acc"]

    def fine_tune(self) -> tuple[float, float]:
        """Return the same of fine-tuning, with the accuracy after it."""
        callback = PersonalizationCallback(
            epochs=EPOCHS, lr=LR, part="full", nearest_mean=False, save_personal=False
        )
        trainer = self._trainer()
        trainer.validate(self.module, datamodule=self.data, verbose=False)
        start = time.process_time()
        with callback.personalizer(trainer).at_work() as personalizer:
            results = [personalizer.client(client) for client in range(self.data.num_clients)]
        return time.process_time() - start, mean(result.record.acc_after for result in results)


class Raw:
    """A plain loop over tensors."""

    def __init__(self, net: str, train: Clients, test: Clients) -> None:
        self.net, self.train, self.test = network(net), train, test
        if any(p.ndim == 4 for p in self.net.parameters()):
            self.net = self.net.to(memory_format=torch.channels_last)

    def _score(self, client: int) -> tuple[float, float]:
        x, y = self.test[client]
        self.net.eval()
        loss, correct = 0.0, 0
        with torch.no_grad():
            for at in range(0, len(x), BATCH):
                logits = self.net(x[at : at + BATCH])
                loss += F.cross_entropy(logits, y[at : at + BATCH], reduction="sum").item()
                correct += (logits.argmax(dim=1) == y[at : at + BATCH]).sum().item()
        return loss / len(x), correct / len(x)

    def evaluate(self) -> tuple[float, float]:
        """Return CPU seconds, and the mean accuracy over clients."""
        start = time.process_time()
        scores = [self._score(client) for client in range(len(self.test))]
        return time.process_time() - start, mean(accuracy for _, accuracy in scores)

    def fine_tune(self) -> tuple[float, float]:
        """Return the same of fine-tuning, with the accuracy after it."""
        start, after = time.process_time(), []
        server = {key: value.clone() for key, value in self.net.state_dict().items()}
        for client, (x, y) in enumerate(self.train):
            self.net.load_state_dict(server)
            self._score(client)
            optimizer = torch.optim.SGD(self.net.parameters(), lr=LR, momentum=0.9)
            self.net.train()
            for _ in range(EPOCHS):
                for rows in torch.randperm(len(x)).split(BATCH):
                    F.cross_entropy(self.net(x[rows]), y[rows]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            after.append(self._score(client)[1])
        self.net.load_state_dict(server)
        return time.process_time() - start, mean(after)


def network(net: str) -> Any:
    """Return a network, always with the same weights."""
    torch.manual_seed(0)
    return NETS[net][0]()


def examples(net: str, clients: int, number: int, seed: int) -> Clients:
    """Return every client's examples: noise, and a class that depends on it."""
    draw = torch.Generator().manual_seed(seed)
    shape = NETS[net][1]
    inputs = [torch.randn(number, *shape, generator=draw) for _ in range(clients)]
    return [(x, x.flatten(1)[:, :10].argmax(dim=1)) for x in inputs]


def main() -> None:
    """Measure in turn and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--work", nargs="+", default=["evaluate", "fine_tune"])
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}, {args.turns} turns\n")
    print("| network | clients | | raw: ms a client | ours | x raw | accuracy: raw | ours |")
    print("|---|---|---|---|---|---|---|---|")
    for net in args.nets:
        for clients in args.clients:
            train, test = (examples(net, clients, n, seed) for seed, n in enumerate((TRAIN, TEST)))
            both = Raw(net, train, test), Fed(net, train, test)
            for work in args.work:
                turns = [[getattr(one, work)() for one in both] for _ in range(args.turns)]
                raw, ours = (1000 * median(t[i][0] for t in turns) / clients for i in (0, 1))
                ratios = [turn[1][0] / turn[0][0] for turn in turns]
                scores = " | ".join(f"{100 * accuracy:.2f}" for _, accuracy in turns[0])
                print(
                    f"| {net} | {clients:,} | {work.replace('_', '-')} | {raw:.3f} | {ours:.3f} | "
                    f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {scores} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
