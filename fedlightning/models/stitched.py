"""A network made of layers that were cut out of others."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlightning.errors import ConfigError
from fedlightning.models.layered import LayeredNetwork

__all__ = ["StitchedNetwork"]


class StitchedNetwork(nn.Module):
    r"""Layers with stitches between them: flatten, stitch, reshape, layer, and so on.

    Args:
        layers: The layers.
        in_shapes: Shape of one example as each layer takes it.
        stitches: What comes before each layer, from the flattened output of the one before (or the
            flattened image) to the numbers that the layer takes; ``None`` for nothing.
        classifier: What comes last, from the flattened output to logits; ``None`` for nothing.

    Example:
        >>> one, other = LayeredNetwork(["conv4", "fc8"]), LayeredNetwork(["conv2", "fc6"])
        >>> network = StitchedNetwork.of([(one, "conv1"), (other, "fc1"), (one, "fc2")])
        >>> network.stitches[1]
        Sequential(
          (0): Linear(in_features=256, out_features=128, bias=True)
          (1): ReLU()
        )
        >>> network(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        in_shapes: Sequence[Sequence[int]],
        stitches: Sequence[nn.Module | None],
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.stitches = nn.ModuleList(stitch or nn.Identity() for stitch in stitches)
        self.in_shapes = [torch.Size(shape) for shape in in_shapes]
        self.classifier = classifier or nn.Identity()
        if not len(layers) == len(in_shapes) == len(stitches):
            raise ConfigError(
                f"StitchedNetwork: {len(layers)} layers, {len(in_shapes)} shapes and "
                f"{len(stitches)} stitches; give as many of each."
            )

    @classmethod
    def of(cls, pieces: Sequence[tuple[LayeredNetwork, str]]) -> StitchedNetwork:
        r"""Return copies of layers, with stitches :math:`\mathrm{ReLU}(W^\top x + b)` between them.

        The first layer has a stitch only if it does not take images, and a linear layer to the
        classes is added only where the last layer is not one of a network's own.

        Args:
            pieces: Network and name of each layer.
        """
        layers: list[nn.Module] = []
        shapes: list[torch.Size] = []
        stitches: list[nn.Module | None] = []
        size = 0
        for network, name in pieces:
            taken, given = network.shapes[name]
            first = not layers
            if first and tuple(taken) == tuple(network.in_shape):
                stitches.append(None)
            else:
                before = network.in_shape.numel() if first else size
                stitches.append(nn.Sequential(nn.Linear(before, taken.numel()), nn.ReLU()))
            layers.append(copy.deepcopy(network.get_submodule(name)))
            shapes.append(taken)
            size = given.numel()
        network, name = pieces[-1]
        last = list(network.shapes)[-1] == name
        classifier = None if last else nn.Linear(size, network.num_classes)
        dtype, device = _kind(pieces[0][0])
        return cls(layers, shapes, stitches, classifier).to(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        for layer, stitch, shape in zip(self.layers, self.stitches, self.in_shapes, strict=True):
            x = layer(stitch(x.flatten(1)).unflatten(1, shape))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def _kind(network: nn.Module) -> tuple[torch.dtype, torch.device]:
    first = next(network.parameters())
    return first.dtype, first.device
