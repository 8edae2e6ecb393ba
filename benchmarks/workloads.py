"""The reference work.

W1 and W2: Fashion-MNIST, 100 clients with two shards, cohort 10, batch 50. W3: the digits of the
quickstart, 20 clients, cohort 10, batch 10: so small that calls cost more than arithmetic.
"""

from __future__ import annotations

import torch
from torch import nn

from fedlightning import FedAvg, FederatedModule, Federation
from fedlightning.datamodules import Digits, FashionMNIST, FederatedDataModule, Shards
from fedlightning.models import MLP, Conv4

COHORT, BATCH = 10, 50


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


class Small(MLP):
    """One hidden layer on 8x8 digits."""

    def __init__(self) -> None:
        super().__init__(in_features=64, hidden=[128], num_classes=10, lr=0.01, lr_milestones=())


MODULES = {"W1": FourConv, "W2": LeNet, "W3": Small}


def data(workload: str = "W1") -> FederatedDataModule:
    """Return the clients' data, loaded and divided."""
    clients: FederatedDataModule
    if workload == "W3":
        clients = Digits(num_clients=20, batch_size=10, partition=Shards(2), seed=0)
    else:
        clients = FashionMNIST(num_clients=100, batch_size=BATCH, partition=Shards(2), seed=0)
    clients.setup()
    return clients


def module(workload: str) -> FederatedModule:
    """Return the workload's module, always with the same weights."""
    torch.manual_seed(0)
    return MODULES[workload]()


def federation(channels_last: bool = False, clients_per_kernel: int = 1) -> Federation:
    """Return the workload's federation."""
    return Federation(
        algorithm=FedAvg(), cohort_size=COHORT, channels_last=channels_last,
        clients_per_kernel=clients_per_kernel, seed=0,
    )  # fmt: skip
