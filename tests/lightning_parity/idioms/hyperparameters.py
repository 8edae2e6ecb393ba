"""Hyperparameters of every kind; each run is resumed from its checkpoint."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.lightning_parity.idiom import CLASSES, FEATURES
from tests.lightning_parity.idioms.base import RATE, Net


class Kind(Enum):
    """An activation by name."""

    TANH = "tanh"
    RELU = "relu"


@dataclass
class Sizes:
    """A configuration as a dataclass."""

    width: int = 5


class Configured(Net):
    """A module that saves whatever it is given as a hyperparameter."""

    def __init__(self, setting: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class Rated(Net):
    """A module whose learning rate is a hyperparameter."""

    def __init__(self, lr: Any) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


class Activated(Net):
    """A module whose activation is a hyperparameter."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["activation"])
        self.net = nn.Sequential(nn.Linear(FEATURES, 5), activation, nn.Linear(5, CLASSES))


class Saved(Activated):
    """The same, saved with it."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__(activation)
        self.save_hyperparameters()


class Optimised(Net):
    """A module that is given a function that makes its optimizer."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return self.hparams["optimizer"](self.parameters())


KINDS: dict[str, Callable[[], Net]] = {
    "a NumPy number": lambda: Rated(np.float64(RATE)),
    "a NumPy array": lambda: Configured(np.arange(3.0)),
    "a path": lambda: Configured(Path("data") / "images"),
    "an enum": lambda: Configured(Kind.RELU),
    "an OmegaConf config": lambda: Configured(OmegaConf.create({"net": {"widths": [5, 3]}})),
    "a dataclass": lambda: Configured(Sizes(5)),
    "a namespace": lambda: Configured(Namespace(width=5)),
    "a nested dictionary": lambda: Configured({"widths": [5, 3], "rates": {"head": 0.1}}),
    "a tuple and a set": lambda: Configured((1, 2, frozenset({3}))),
    "a dtype": lambda: Configured(torch.float32),
    "a tensor": lambda: Configured(torch.ones(3)),
    "a class": lambda: Configured(nn.Tanh),
    "a function": lambda: Configured(torch.tanh),
    "a partial": lambda: Optimised(partial(torch.optim.SGD, lr=RATE)),
    "a module": lambda: Saved(nn.Tanh()),
    "a module that is ignored": lambda: Activated(nn.Tanh()),
}
"""What the hyperparameter is, and a module that has it."""
