"""Two networks whose logits add up: one that is shared, one that stays with each client."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fedlightning.core.validation import check_integer, check_number
from fedlightning.models.base import FederatedModule

__all__ = ["ResidualMLP"]


class ResidualMLP(FederatedModule):
    r"""A shared perceptron :math:`g` and a private one :math:`h`: logits :math:`g(x) + h(x)`.

    Both output layers start at zero, so the first logits are 0 and the first loss is
    :math:`\log C`; hidden layers start as torch starts them. The part ``private`` is :math:`h`; for
    a pair of other networks write a module that names its own part so (see
    :class:`~fedlightning.algorithms.FedRes`).

    Args:
        in_features: Numbers per example; 64 for the 8x8 digits.
        shared_hidden: Widths of the hidden layers of :math:`g`; empty for a linear one.
        private_hidden: Those of :math:`h`. It should be the simpler of the two.
        num_classes: Number of classes :math:`C`.
        private_lr: Learning rate of :math:`h`; ``None`` means ``lr``, which is that of :math:`g`.
        output_bias: Whether the output layers have biases.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``, ...

    Raises:
        ConfigError: If a number is out of its range.

    Example:
        >>> import torch
        >>> pair = ResidualMLP(in_features=4, shared_hidden=[8], num_classes=3)
        >>> pair.part_keys("private")
        ('private.1.weight', 'private.1.bias')
        >>> bool((pair(torch.rand(2, 4)) == 0).all())
        True
    """

    def __init__(
        self,
        in_features: int = 64,
        shared_hidden: Sequence[int] = (32,),
        private_hidden: Sequence[int] = (),
        num_classes: int = 10,
        private_lr: float | None = None,
        output_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs["parts"] = kwargs.get("parts") or {"private": "private"}
        super().__init__(**kwargs)
        check_integer("in_features", in_features, at_least=1)
        check_integer("num_classes", num_classes, at_least=1)
        for width in (*shared_hidden, *private_hidden):
            check_integer("shared_hidden and private_hidden", width, at_least=1)
        if private_lr is not None:
            check_number("private_lr", private_lr, above=0)
        self.save_hyperparameters()
        self.private_lr = private_lr
        self.shared = _perceptron([in_features, *shared_hidden, num_classes], output_bias)
        self.private = _perceptron([in_features, *private_hidden, num_classes], output_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.shared(x) + self.private(x)
        return logits

    def optimizer_groups(self, trainable: list[nn.Parameter]) -> Any:
        """Return the shared and the private parameters, each with its learning rate."""
        if self.private_lr is None:
            return trainable
        private = set(self.private.parameters())
        shared_group = {"params": [p for p in trainable if p not in private]}
        private_group = {"params": [p for p in trainable if p in private], "lr": self.private_lr}
        return [group for group in (shared_group, private_group) if group["params"]]


def _perceptron(widths: Sequence[int], output_bias: bool) -> nn.Sequential:
    """Return flattening, hidden layers with ReLU, and an output layer of zeros."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    output = nn.Linear(widths[-2], widths[-1], bias=output_bias)
    for parameter in output.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers, output)
