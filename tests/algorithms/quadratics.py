"""Clients with losses that can be minimised by hand: (w - b)^T A (w - b) / 2, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fedlightning.datamodules import ClientDatasets

__all__ = ["InOrder", "Quadratic", "Weights", "clients", "scalars"]


class Weights(pl.LightningModule):
    """One parameter w, of any shape; a subclass says what the loss of a batch is.

    Args:
        start: w at first.
        lr: Learning rate of SGD.
    """

    def __init__(self, start: Any, lr: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())
        self.lr = lr

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("global/loss", self.loss(batch), batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class Quadratic(Weights):
    """The mean over examples (A, b); of a scalar w, A and b are numbers."""

    def loss(self, batch: Any) -> Tensor:
        curvature, optimum = batch
        away = self.w - optimum
        if away.ndim < 2:
            return (curvature * away.square()).mean() / 2
        return torch.einsum("ni,nij,nj->n", away, curvature, away).mean() / 2


class InOrder(ClientDatasets):
    """Each client's examples are one batch, in the order in which they are given."""

    def batches(
        self, client: int, split: str, *, key: Any = None, device: Any = "cpu"
    ) -> Iterator[Any]:
        given = self._sources[split != "train"][client]
        yield tuple(part.clone() for part in given)


def clients(pairs: Sequence[tuple[Tensor, Tensor]]) -> InOrder:
    """Return clients with these examples, to train and to test on."""
    size = max(len(x) for x, _ in pairs)
    return InOrder(train=list(pairs), test=list(pairs), batch_size=size, num_classes=2)


def scalars(curvature: Sequence[float] | Tensor, optimum: Sequence[float] | Tensor) -> InOrder:
    """Return clients with one example each: a (w - b)^2 / 2."""
    pairs = [torch.as_tensor(v, dtype=torch.float64)[:, None] for v in (curvature, optimum)]
    return clients(list(zip(*pairs, strict=True)))
