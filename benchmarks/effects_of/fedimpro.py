"""FedImpro: clients' heads drift apart less than with FedAvg; accuracy is reported, not demanded.

Fashion-MNIST at 14 x 14, 6,000 images, Dirichlet(0.1) over 10 clients, 5 a round, two convolutions
and a linear head, 150 rounds of one epoch, batch 128, SGD 0.1 without momentum, weight decay 1e-4.
Drawn features have as many labels of every class, as in the authors' code; with the batch's labels,
as in the paper, three seeds gave 0.88, 0.77 and 0.81 of FedAvg's distance.
``ours`` and ``fedavg`` are mean distances of clients' heads from their average over the last 30
rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from effects_of import Demand
from effects_of._images import fashion_mnist
from effects_of._runs import fit, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import Algorithm, FedAvg, FederatedModule, FedImpro
from fedlightning.datamodules import Dirichlet, FederatedArrays

ROUNDS, LAST, COHORT = 150, 30, 5


class SmallConv(FederatedModule):
    """Two convolutions, 144 features, a linear head."""

    def __init__(self) -> None:
        super().__init__(lr=0.1, momentum=0.0, weight_decay=1e-4, lr_milestones=())
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(144, 10)


class Watching(pl.Callback):
    """Distances of the cohort's heads from their mean; accuracy of the global model."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.heads: list[Tensor] = []
        self.distances: list[float] = []
        self.accuracies: list[float] = []

    def on_client_end(self, trainer: Any, pl_module: Any, update: Any) -> None:
        """Take down a client's head."""
        parts = [value.flatten() for key, value in update.state.items() if key.startswith("head")]
        self.heads.append(torch.cat(parts).detach().clone())

    @torch.no_grad()
    def on_aggregate_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the round."""
        heads = torch.stack(self.heads)
        self.distances.append(float((heads - heads.mean(dim=0)).norm(dim=1).mean()))
        self.heads.clear()
        if len(self.distances) % 10 == 0:
            right = pl_module(self.images).argmax(dim=1) == self.labels
            self.accuracies.append(float(right.float().mean()))


def _run(seed: int, algorithm: Algorithm) -> Watching:
    x, y, test_x, test_y = fashion_mnist(seed, 6_000, 2_000)
    small, test = (F.avg_pool2d(torch.from_numpy(images[:, None]), 2) for images in (x, test_x))
    data = FederatedArrays(
        (small, y), (test[:10], test_y[:10]), num_classes=10, num_clients=10, batch_size=128,
        partition=Dirichlet(0.1), seed=seed,
    )  # fmt: skip
    watching = Watching(test, torch.from_numpy(test_y))
    module = seeded(seed, SmallConv)
    settings = {"cohort_size": COHORT}
    fit(module, data, algorithm, ROUNDS, seed, federation=settings, callbacks=[watching])
    return watching


def measure(seed: int) -> dict[str, float]:
    """Return distances of heads, and best accuracies, of FedImpro and FedAvg."""
    found: dict[str, float] = {}
    for name, algorithm in (("ours", FedImpro(cut="body", fakes="balanced")), ("fedavg", FedAvg())):
        seen = _run(seed, algorithm)
        found[name] = sum(seen.distances[-LAST:]) / LAST
        found[f"{name} best accuracy"] = max(seen.accuracies)
    return found


def demands(measured: Sequence[dict[str, float]]) -> list[Demand]:
    """Demand heads nearer by a fifth, on average over seeds, beside a FedAvg that has learnt."""
    return [
        Demand(
            "1 - distance of heads / FedAvg's, mean over seeds",
            sum(1 - one["ours"] / one["fedavg"] for one in measured) / len(measured),
            0.2,
        ),
        Demand(
            "best accuracy of FedAvg, worst seed (0.1 is chance)",
            min(one["fedavg best accuracy"] for one in measured),
            0.4,
        ),
    ]
