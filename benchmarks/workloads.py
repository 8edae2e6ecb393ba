"""The reference work: Fashion-MNIST, 100 clients with two shards, cohort 10, batch 50."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedlightning import FedAvg, FederatedModule, Federation
from fedlightning.datamodules import FashionMNIST, Shards
from fedlightning.models import Conv4

COHORT, BATCH = 10, 50
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}
"""Trainer arguments with which nothing but the work is timed."""


class LeNet(FederatedModule):
    """Two 5x5 convolutions of 32 and 64 channels, two linear layers."""

    def __init__(self) -> None:
        super().__init__(lr=0.01, lr_milestones=())
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(512, 10)


class FourConv(Conv4):
    """4convNet on 28x28 grey images."""

    def __init__(self) -> None:
        super().__init__(in_channels=1, image_size=28, lr=0.01, lr_milestones=())


class FourConvRunning(FourConv):
    """The same with running statistics, so that features do not depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.body.features:
            block[1] = nn.BatchNorm2d(block[1].num_features)


MODULES = {"W1": FourConv, "W2": LeNet, "W3": FourConvRunning}


def data() -> FashionMNIST:
    """Return the clients' data, loaded and divided."""
    clients = FashionMNIST(num_clients=100, batch_size=BATCH, partition=Shards(2), seed=0)
    clients.setup()
    return clients


def module(workload: str) -> FederatedModule:
    """Return the workload's module, always with the same weights."""
    torch.manual_seed(0)
    return MODULES[workload]()


def federation(**settings: Any) -> Federation:
    """Return the workload's federation."""
    return Federation(algorithm=FedAvg(), cohort_size=COHORT, seed=0, **settings)
