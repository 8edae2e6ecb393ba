"""Networks that are a list of named layers, each with one operation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedlightning.core.validation import check_integer
from fedlightning.errors import ConfigError

__all__ = ["LayeredNetwork", "Operation", "TracedLayer", "operation_of"]

Operation = Literal["conv", "pool", "fc"]
"""What a layer does: convolution, pooling, or a linear map of the flattened input."""

_LAYER = re.compile(r"(conv|pool|fc)([1-9]\d*)")


@dataclass(frozen=True)
class TracedLayer:
    """What a layer gets and gives for some examples; maps are averaged over their positions.

    Args:
        name: The layer's name.
        operation: What it does.
        inputs: Shape (n, p).
        outputs: Shape (n, q).
    """

    name: str
    operation: Operation
    inputs: Tensor
    outputs: Tensor


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

    Attributes:
        shapes: Shape of one example as each layer takes it, and as it gives it, by name.

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
        self.in_shape, self.num_classes = torch.Size(in_shape), num_classes
        self.shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
        shape, counts = self.in_shape, dict.fromkeys(("conv", "pool", "fc"), 0)
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
            if kind != "fc" and min(shape[1:]) < (size if kind == "pool" else 3 - 2 * padding):
                raise ConfigError(
                    f"layers={list(layers)}: {layer!r} gets {tuple(shape)}, too small."
                )
            counts[kind] += 1
            after = _shape_after(kind, size, shape, padding)
            self._add(f"{kind}{counts[kind]}", _block(kind, size, shape, padding), shape, after)
            shape = after
        classes, last = torch.Size([num_classes]), nn.Linear(shape.numel(), num_classes)
        self._add(f"fc{counts['fc'] + 1}", last, shape, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        for layer in self.children():
            x = layer(x.flatten(1) if operation_of(layer) == "fc" else x)
        return x

    @torch.no_grad()
    def trace(self, x: Tensor) -> list[TracedLayer]:
        """Return what each layer gets and gives, in order.

        Args:
            x: Images, shape (n, channels, height, width).
        """
        traced = []
        for name, layer in self.named_children():
            operation = operation_of(layer)
            x = x.flatten(1) if operation == "fc" else x
            after = layer(x)
            traced.append(TracedLayer(name, operation, _features(x), _features(after)))
            x = after
        return traced

    def _add(self, name: str, layer: nn.Module, takes: torch.Size, gives: torch.Size) -> None:
        if operation_of(layer) == "fc":
            takes = torch.Size([takes.numel()])
        self.add_module(name, layer)
        self.shapes[name] = takes, gives


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


def _features(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3)) if x.ndim == 4 else x


def _block(kind: str, size: int, shape: torch.Size, padding: int) -> nn.Module:
    if kind == "pool":
        return nn.MaxPool2d(size)
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(shape[0], size, 3, padding=padding), nn.ReLU())
    return nn.Sequential(nn.Linear(shape.numel(), size), nn.ReLU())


def _shape_after(kind: str, size: int, shape: torch.Size, padding: int) -> torch.Size:
    if kind == "fc":
        return torch.Size([size])
    if kind == "pool":
        return torch.Size([shape[0], *(side // size for side in shape[1:])])
    return torch.Size([size, *(side + 2 * padding - 2 for side in shape[1:])])
