"""CPU seconds to personalise heads: the body at every step, or once an example.

Workload W3: all clients of Fashion-MNIST fine-tune their heads for five epochs and are evaluated
before and after. Every variant runs in turn, several times over, on one thread; a row shows the
median turn and its ratio to the plain path in the same memory layout and in the default one. The
mean accuracy afterwards stands beside the time, so that nobody is fast by doing something else.

    python benchmarks/personalization.py --turns 3
    python benchmarks/personalization.py --clients 20 --nearest-mean
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
import warnings
from dataclasses import dataclass
from datetime import date
from statistics import mean, median

import torch
from workloads import QUIET, data, federation, module

from fedlightning import FederatedTrainer, PersonalizationCallback
from fedlightning.datamodules import FederatedDataModule

NETS = {"W3": "4convNet with running statistics", "W2": "LeNet"}
VARIANTS = {
    "plain": (False, False),
    "features once": (False, True),
    "plain, channels last": (True, False),
    "features once, channels last": (True, True),
}


@dataclass(frozen=True)
class Measured:
    """One variant's turn: CPU seconds, and the mean accuracy over clients."""

    cpu: float
    accuracy: float


def personalize(
    net: str,
    clients: FederatedDataModule,
    number: int,
    nearest_mean: bool,
    channels_last: bool,
    features_once: bool,
) -> Measured:
    """Personalise the first clients, one after another, as the callback does."""
    model = module(net)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    callback = PersonalizationCallback(
        epochs=5, lr=0.01, nearest_mean=nearest_mean, features_once=features_once
    )
    trainer = FederatedTrainer(
        federation=federation(channels_last=channels_last), limit_val_batches=1, **QUIET
    )
    trainer.validate(model, datamodule=clients, verbose=False)
    start = time.process_time()
    with callback.personalizer(trainer).at_work() as personalizer:
        results = [personalizer.client(client) for client in range(number)]
    seconds = time.process_time() - start
    return Measured(seconds, mean(result.record.acc_after for result in results))


def main() -> None:
    """Measure and print a Markdown table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--nearest-mean", action="store_true", help="measure it, too, in all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    clients = data()
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}, ", end="")
    print(f"{args.clients} clients, nearest mean {'on' if args.nearest_mean else 'off'}")
    for net in args.nets:
        turns = [
            {
                name: personalize(net, clients, args.clients, args.nearest_mean, *variant)
                for name, variant in VARIANTS.items()
            }
            for _ in range(args.turns)
        ]
        print(f"\n| {NETS[net]} | CPU s | plain / this, same layout | plain / this | accuracy |")
        print("|---|---|---|---|---|")
        for name in VARIANTS:
            same = "plain, channels last" if "channels last" in name else "plain"
            ratios = (
                median(turn[base].cpu / turn[name].cpu for turn in turns)
                for base in (same, "plain")
            )
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            seconds = median(turn[name].cpu for turn in turns)
            print(
                f"| {name} | {seconds:.1f} | {cells} | {100 * turns[0][name].accuracy:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
