"""Parameters that are not simply real, dense, separate and contiguous."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.lightning_parity.idiom import CLASSES, FEATURES
from tests.lightning_parity.idioms.base import RATE, Net
from tests.lightning_parity.idioms.batches import Tokens


class Tied(Net):
    """An output layer that shares its weight with the input layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.outward.weight = self.inward.weight
        self.net = nn.Sequential(self.inward, nn.Tanh(), self.outward)


class SharedLayer(Net):
    """One layer under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(FEATURES, FEATURES)
        self.net = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(FEATURES, CLASSES))


class Spectral(nn.Module):
    """A layer with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(3, CLASSES, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.rfft(x) @ self.weight).abs()


class Complex(Net):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Spectral(), nn.Linear(CLASSES, CLASSES))


class SparseGradients(Tokens):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, CLASSES))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class SparseBuffer(Net):
    """A sparse matrix as a buffer, as graph networks have it."""

    neighbours: Tensor

    def __init__(self) -> None:
        super().__init__()
        ring = torch.eye(FEATURES) + torch.eye(FEATURES).roll(1, dims=0)
        self.register_buffer("neighbours", ring.to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.sparse.mm(self.neighbours, x.T).T)


class NonContiguous(Net):
    """A parameter that is a transposed view, and one with gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter((0.5 * torch.randn(5, FEATURES)).t())
        self.second = nn.Parameter((0.5 * torch.randn(5, 2 * CLASSES))[:, ::2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.second


class Half(Net):
    """A layer in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[1](self.net[0](x.to(torch.bfloat16)))
        return self.net[2](hidden.float())


class Double(Net):
    """A module in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())


class OddShapes(Net):
    """A scalar, an empty tensor, and lists and dictionaries of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(CLASSES)) for _ in range(2)])
        self.by_name = nn.ParameterDict({"gain": nn.Parameter(torch.ones(CLASSES))})

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scale * self.net(x) * self.by_name["gain"]
        return logits + self.shifts[0] + 2 * self.shifts[1]


class Parametrised(Net):
    """Weight norm and spectral norm as parametrizations."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.net[0])
        parametrizations.spectral_norm(self.net[2])


class ChannelsLast(Net):
    """A convolution whose weights have channels last."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 4, 2),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        ]
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Groups(Net):
    """One parameter group for each layer, by name."""

    def configure_optimizers(self) -> Any:
        rates = {"0": RATE, "2": RATE / 2}
        groups = [
            {"params": self.net[int(name)].parameters(), "lr": rate} for name, rate in rates.items()
        ]
        return torch.optim.SGD(groups, RATE)
