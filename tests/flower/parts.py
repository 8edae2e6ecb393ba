"""A module and a callback of a user's own, for deployed runs."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from fedlightning.core.messages import ClientUpdate
from fedlightning.models import MLP


class MovesFrozen(MLP):
    """Has a frozen parameter that every client's training moves."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(in_features=64, hidden=[8], num_classes=10, **kwargs)
        self.body.register_parameter("seen", torch.nn.Parameter(torch.zeros(1), False))

    def on_train_end(self) -> None:
        with torch.no_grad():
            self.body.seen += 1.0


class Doubles(pl.Callback):
    """Doubles what a client sends."""

    def on_client_end(self, trainer: Any, module: Any, update: ClientUpdate) -> None:
        for value in update.state.values():
            value.mul_(2)
