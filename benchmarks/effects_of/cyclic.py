"""Cyclic weight transfer and FedAvg, a ViT and two CNNs, from scratch and pretrained.

Scikit-learn's digits at five clients, once divided at random and once with two classes each that
no other client has; 25 passes over the clients' data. Optimizers as published: FedAvg keeps each
client's momentum and schedule, cyclic weight transfer hands them on. Networks are pretrained on
Fashion-MNIST at eight pixels. Measured is the accuracy on all test images after the last round,
with no selection. What is demanded is that pretraining helps the ViT where clients have two
classes; the other rows are printed beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from effects_of import Demand
from effects_of._images import fashion_mnist
from effects_of._runs import fit, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import FedAvg, FederatedModule, FederatedTrainer
from fedlightning.datamodules import IID, Classes, Digits, FederatedArrays
from fedlightning.federation import Cyclic
from fedlightning.models import SmallViT

CLIENTS, ROUNDS, BATCH, CLIP = 5, 25, 32, 1.0
FEDAVG = {"lr": 0.03, "warmup_steps": 100}
CYCLIC = {"lr": 0.003, "warmup_steps": 500}
PRETRAINING = {"lr": 0.03, "warmup_steps": 100}
IMAGES, EPOCHS = 6000, 15


class Convolutions(FederatedModule):
    """Two convolutions and a hidden layer, with a norm of choice: 27,562 parameters."""

    def __init__(self, norm: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)

        def normed(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(8, channels)

        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), normed(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), normed(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)


NETWORKS: dict[str, Any] = {
    "ViT": SmallViT,
    "CNN with GroupNorm": lambda **kwargs: Convolutions("group", **kwargs),
    "CNN with BatchNorm": lambda **kwargs: Convolutions("batch", **kwargs),
}
DIVISIONS = {"IID": IID(), "2 classes": Classes(2)}


def clients(seed: int, division: str) -> Digits:
    """Return five clients' digits."""
    return Digits(num_clients=CLIENTS, batch_size=BATCH, partition=DIVISIONS[division], seed=seed)


def pretrained(seed: int, network: str) -> dict[str, Tensor]:
    """Return the body's weights after training on Fashion-MNIST, in one place."""
    *train, _, _ = fashion_mnist(seed, IMAGES, 10)
    images = F.adaptive_avg_pool2d(torch.from_numpy(train[0])[:, None], 8)
    data = FederatedArrays((images, train[1]), (images[:10], train[1][:10]), num_clients=1,
                           num_classes=10, batch_size=64, partition=IID(), seed=seed)  # fmt: skip
    module = seeded(seed, NETWORKS[network], **PRETRAINING)
    fit(module, data, FedAvg(), 1, seed, federation={"local_epochs": EPOCHS},
        gradient_clip_val=CLIP)  # fmt: skip
    return module.part_state_dict("body")


def run(
    seed: int, network: str, division: str, start: dict[str, Tensor], cyclic: bool
) -> FederatedTrainer:
    """Train from these weights of the body."""
    module = seeded(seed, NETWORKS[network], **(CYCLIC if cyclic else FEDAVG))
    module.load_part(start)
    settings: dict[str, Any] = {"optimizer_state": "keep"}
    if cyclic:
        settings = {"schedule": Cyclic("fixed")}
    return fit(module, clients(seed, division), FedAvg(), ROUNDS * (CLIENTS if cyclic else 1), seed,
               federation=settings, gradient_clip_val=CLIP)  # fmt: skip


@torch.no_grad()
def accuracy(built: FederatedTrainer) -> float:
    """Return the accuracy on all clients' test images together."""
    module, data = built.lightning_module.eval(), built.datamodule
    hits = [
        (module(x).argmax(1) == y).float()
        for client in range(CLIENTS) for x, y in data.batches(client, "test")
    ]  # fmt: skip
    return float(torch.cat(hits).mean())


def measure(seed: int) -> dict[str, float]:
    """Return the accuracy of every network, division, start and way to train."""
    found: dict[str, float] = {}
    for network in NETWORKS:
        starts = {"scratch": {}, "pretrained": pretrained(seed, network)}
        for division in DIVISIONS:
            for name, start in starts.items():
                for way, cyclic in (("FedAvg", False), ("cyclic", True)):
                    built = run(seed, network, division, start, cyclic)
                    found[f"{network}, {division}, {name}, {way}"] = accuracy(built)
    found["ours"] = found["ViT, 2 classes, pretrained, cyclic"]
    return found


def demands(measured: list[dict[str, float]]) -> list[Demand]:
    """Return what pretraining must gain for the ViT on two classes."""

    def gain(way: str) -> float:
        start, end = (f"ViT, 2 classes, {start}, {way}" for start in ("scratch", "pretrained"))
        return sum(one[end] - one[start] for one in measured) / len(measured)

    return [
        Demand("gained by pretraining, cyclic weight transfer", gain("cyclic"), 0.3),
        Demand("gained by pretraining, FedAvg", gain("FedAvg"), 0.3),
    ]
