"""Features of a network, for predictors that compare examples by them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["forward_features"]


def forward_features(module: nn.Module, layer: str, inputs: Any) -> tuple[Tensor, Tensor]:
    """Return what a module gives for inputs, and a layer's output on the way.

    Args:
        module: The module.
        layer: The layer's name in it.
        inputs: What ``forward`` takes.

    Returns:
        The module's output, and the features, shape (examples, features).

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 3))
        >>> logits, features = forward_features(net, "0", torch.tensor([[1.0, -1.0]]))
        >>> features, logits.shape
        (tensor([[1., 0.]]), torch.Size([1, 3]))
    """
    seen: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    try:
        output: Tensor = module(inputs)
    finally:
        handle.remove()
    return output, seen[-1].flatten(1)
