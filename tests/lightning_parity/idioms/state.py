"""What a module remembers besides its parameters."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lightning_parity.idiom import FEATURES, note
from tests.lightning_parity.idioms.base import RATE, Net


class HiddenState(Net):
    """A recurrent network whose hidden state goes from batch to batch, cut from its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(FEATURES, 5, batch_first=True), nn.Linear(5, 3)
        self.hidden: Tensor | None = None
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden if self.training else None
        out, hidden = self.rnn(x.unsqueeze(0), hidden)
        if self.training:
            self.hidden = hidden.detach()
        return self.out(out.squeeze(0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        known = 0.0 if self.hidden is None else float(self.hidden.abs().sum())
        note("train: hidden state", known)
        return super().training_step(batch, batch_idx)


class HiddenStateOfTheEpoch(HiddenState):
    """The same, forgotten at the start of an epoch."""

    def on_train_epoch_start(self) -> None:
        self.hidden = None


class Teacher(Net):
    """A second network that follows the first by an exponential mean, as BYOL and MoCo have."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def loss(self, batch: Any) -> Tensor:
        logits = self(batch[0])
        return F.cross_entropy(logits, batch[1]) + F.mse_loss(logits, self.teacher(batch[0]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.3)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), RATE)


class Queue(Net):
    """A buffer of past features with a pointer, as MoCo's queue."""

    queue: Tensor
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(8, FEATURES))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        note("train: place", int(self.place))
        loss = self.loss(batch) + 0.01 * self(self.queue.clone()).square().mean()
        rows = (int(self.place) + torch.arange(len(x))) % len(self.queue)
        self.queue[rows] = x
        self.place[0] = (int(self.place) + len(x)) % len(self.queue)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


class Counter(Net):
    """A plain counter that sets the weight of a term."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += len(batch[1])
        note("train: examples seen", self.seen)
        loss = self.loss(batch) + 0.001 * self.seen * self.net[2].weight.square().sum()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


class Replay(Net):
    """A buffer of past batches in a deque of tensors, and running means in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.past: deque[Any] = deque(maxlen=2)
        self.means: dict[str, float] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        for old in self.past:
            loss = loss + 0.5 * self.loss(old)
        self.past.append(batch)
        self.means["loss"] = 0.9 * self.means.get("loss", 0.0) + 0.1 * float(loss.detach())
        note("train: mean loss", self.means["loss"])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


class TensorAttribute(Net):
    """A running mean in a tensor that is neither parameter nor buffer, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.center = torch.zeros(FEATURES)

    def loss(self, batch: Any) -> Tensor:
        return super().loss((batch[0] - self.center, batch[1]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.center.lerp_(batch[0].mean(dim=0), 0.1)
        note("train: center", float(self.center.sum()))


class NotSaved(Net):
    """A buffer that is not saved."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(FEATURES), persistent=False)

    def loss(self, batch: Any) -> Tensor:
        return super().loss((batch[0] - self.center, batch[1]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.center.lerp_(batch[0].mean(dim=0), 0.1)
        note("train: center", float(self.center.sum()))


class MemoryOfEvaluation(Net):
    """A cache that evaluation fills, and that training would use if it found it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def on_validation_epoch_end(self) -> None:
        note("val: batches in the cache", len(self.cache))
        self.cache.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.cache[f"batch {batch_idx}"] = batch[0]
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.cache[f"test {batch_idx}"] = batch[0]
        super().test_step(batch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        note("train: batches in the cache", len(self.cache))
        return super().training_step(batch, batch_idx)


class ClassStatistics(Net):
    """Counts of classes in an integer buffer that training fills and the loss uses."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(3, dtype=torch.long))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.counts += torch.bincount(y, minlength=3)
        prior = self.counts / self.counts.sum()
        note("train: prior", tuple(prior.tolist()))
        loss = F.cross_entropy(self(x) + prior.log(), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss
