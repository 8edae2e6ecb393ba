"""Networks that are a list of named layers, each with one operation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedlightning.core.validation import check_integer
from fedlightning.errors import ConfigError

__all__ = ["LayeredNetwork", "Operation", "operation_of"]

Operation = Literal["conv", "pool", "fc"]
"""What a layer does: convolution, pooling, or a linear map of the flattened input."""

_LAYER = re.compile(r"(conv|pool|fc)([1-9]\d*)")


class LayeredNetwork(nn.Module):
    """Layers one after another: ``conv1``, ``pool1``, ``conv2``, ``fc1``, ...; the last has logits.

    Convolutions (3x3) and linear layers have a ReLU with them, but for the last linear layer.

    Args:
        layers: ``conv8`` for a convolution to eight channels, ``pool2`` for the maximum over 2x2
            positions, ``fc32`` for a linear layer to 32 numbers; a linear layer to the classes
            comes last by itself. Linear layers end the list.
        in_shape: Channels, height and width of an image.
        num_classes: Number of classes.
        padding: Rows and columns of zeros around a convolution's input.

    Raises:
        ConfigError: If a layer is named otherwise, or cannot follow the one before it.

    Example:
        >>> network = LayeredNetwork(["conv4", "pool2", "fc16"], in_shape=(1, 8, 8))
        >>> [name for name, layer in network.named_children()]
        ['conv1', 'pool1', 'fc1', 'fc2']
        >>> network(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        layers: Sequence[str] = ("conv8", "pool2", "fc32"),
        in_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        padding: int = 1,
    ) -> None:
        super().__init__()
        if len(in_shape) != 3:
            raise ConfigError(f"in_shape must be channels, height, width, got {list(in_shape)}.")
        for size in (*in_shape, check_integer("num_classes", num_classes, at_least=1)):
            check_integer("in_shape", size, at_least=1)
        check_integer("padding", padding, at_least=0)
        shape, counts = tuple(in_shape), dict.fromkeys(("conv", "pool", "fc"), 0)
        for layer in layers:
            found = _LAYER.fullmatch(layer) if isinstance(layer, str) else None
            if found is None:
                raise ConfigError(
                    f"layers: {layer!r} is not a layer; say 'conv8', 'pool2' or 'fc32' with your "
                    "own number."
                )
            kind, size = found[1], int(found[2])
            if kind != "fc" and len(shape) == 1:
                raise ConfigError(f"layers={list(layers)}: {layer!r} cannot follow a linear layer.")
            block = _block(kind, size, shape, padding)
            if kind != "fc" and min(shape[1:]) < (size if kind == "pool" else 3 - 2 * padding):
                raise ConfigError(f"layers={list(layers)}: {layer!r} gets {shape}, too small.")
            counts[kind] += 1
            self.add_module(f"{kind}{counts[kind]}", block)
            shape = _shape_after(kind, size, shape, padding)
        self.add_module(f"fc{counts['fc'] + 1}", nn.Linear(_numel(shape), num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        for layer in self.children():
            x = layer(x.flatten(1) if operation_of(layer) == "fc" else x)
        return x


def operation_of(layer: nn.Module) -> Operation:
    """Return what a layer does, by the modules in it.

    Example:
        >>> operation_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU())), operation_of(nn.MaxPool2d(2))
        ('fc', 'pool')
    """
    kinds = [type(child) for child in layer.modules()]
    if nn.Linear in kinds:
        return "fc"
    return "conv" if nn.Conv2d in kinds else "pool"


def _block(kind: str, size: int, shape: tuple[int, ...], padding: int) -> nn.Module:
    if kind == "pool":
        return nn.MaxPool2d(size)
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(shape[0], size, 3, padding=padding), nn.ReLU())
    return nn.Sequential(nn.Linear(_numel(shape), size), nn.ReLU())


def _shape_after(kind: str, size: int, shape: tuple[int, ...], padding: int) -> tuple[int, ...]:
    if kind == "fc":
        return (size,)
    if kind == "pool":
        return (shape[0], *(side // size for side in shape[1:]))
    return (size, *(side + 2 * padding - 2 for side in shape[1:]))


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
