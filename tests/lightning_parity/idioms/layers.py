"""Layers that are made late, set themselves up, or have a mode of their own."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tests.lightning_parity.idiom import CLASSES, FEATURES, note
from tests.lightning_parity.idioms.base import RATE, Net
from tests.lightning_parity.runs import seeded


class MadeInSetup(Net):
    """The last layer is made in ``setup()``."""

    def setup(self, stage: str) -> None:
        if len(self.net) == 3:
            self.net.append(seeded(lambda: nn.Linear(CLASSES, CLASSES)))


class MadeInConfigureModel(Net):
    """The network is made in ``configure_model()``."""

    def __init__(self) -> None:
        super().__init__()
        del self.net
        self.net = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.net is None:
            layers = [nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)]
            self.net = nn.Sequential(*layers)
            for layer in self.net.parameters():
                nn.init.normal_(layer, std=0.5, generator=torch.Generator().manual_seed(1))


def _lazy() -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are "under heavy development"
        return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(CLASSES))


class LazyLayers(Net):
    """Lazy layers that see an example before the optimizer does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _lazy()

    def configure_model(self) -> None:
        seeded(lambda: self.net(torch.zeros(1, FEATURES)))


class LazyToTheEnd(Net):
    """Lazy layers that nobody has shown an example."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _lazy()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first = batch_idx == 0 and self.current_epoch == 0
        return seeded(lambda: self._step(batch)) if first else self._step(batch)

    def _step(self, batch: Any) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


class BatchNorm(Net):
    """Running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(5))


class FrozenInEval(BatchNorm):
    """A frozen encoder that is put into eval mode once, when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)
        self.net[1].requires_grad_(False).eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[3].parameters(), RATE)


class FrozenByHook(FrozenInEval):
    """A frozen encoder that a hook puts into eval mode when an epoch starts."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1].train()

    def on_train_epoch_start(self) -> None:
        self.net[1].eval()


class FrozenByTrain(FrozenInEval):
    """A frozen encoder that an overridden ``train()`` leaves in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> FrozenByTrain:
        super().train(mode)
        self.net[1].eval()
        return self


class ActNorm(nn.Module):
    """A layer that normalises its first batch, and remembers it in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = (nn.Parameter(torch.zeros(FEATURES)) for _ in range(2))
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.ready:
            note("train: set up from", float(x.sum()))
            self.set_up(x)
            self.ready = True
        return (x - self.shift) * self.scale

    @torch.no_grad()
    def set_up(self, x: Tensor) -> None:
        self.shift.copy_(x.mean(dim=0))
        self.scale.copy_(1 / (x.std(dim=0) + 0.1))


class WithActNorm(Net):
    """A layer that sets itself up from its first training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(0, ActNorm())


class FlaggedActNorm(ActNorm):
    """The same in any mode, with the flag in a buffer, as in Glow."""

    is_set_up: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("is_set_up", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_set_up:
            self.set_up(x)
            self.is_set_up.fill_(True)
        return (x - self.shift) * self.scale


class WithFlaggedActNorm(Net):
    """A layer that sets itself up from the first batch it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(0, FlaggedActNorm())


class CountsPasses(nn.Module):
    """A layer that counts its forward passes and changes with their number."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.passes += 1
        return x * (1 + 0.01 * self.passes)


class MovedByEvaluation(Net):
    """A layer that an evaluation changes; plain Lightning tests a model of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(0, CountsPasses())
