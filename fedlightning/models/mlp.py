"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from fedlightning.core.validation import check_integer
from fedlightning.errors import ConfigError
from fedlightning.models.base import FederatedModule

__all__ = ["MLP"]


class MLP(FederatedModule):
    """Flattened inputs, hidden layers with ReLU, a linear head.

    Args:
        in_features: Numbers per example; 64 for the 8x8 digits.
        hidden: Widths of the hidden layers, at least one.
        num_classes: Number of classes.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``head``, ...

    Raises:
        ConfigError: If a number is not an integer >= 1, or there are no hidden layers.

    Example:
        >>> MLP(in_features=64, hidden=[32], num_classes=10).part_keys("body")
        ('body.1.weight', 'body.1.bias')
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] = (64,),
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("in_features", in_features, at_least=1)
        check_integer("num_classes", num_classes, at_least=1)
        if not hidden:
            raise ConfigError("hidden must have at least one width, got none.")
        for width in hidden:
            check_integer("hidden", width, at_least=1)
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([in_features, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], num_classes)
