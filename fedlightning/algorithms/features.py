"""Features and labels, for algorithms that compare examples by them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedlightning.errors import ConfigError

__all__ = ["class_labels", "forward_features"]


def class_labels(batch: Any, name: str) -> Tensor:
    """Return the labels of a batch (inputs, labels).

    Args:
        batch: The batch.
        name: Who needs them, for the error.

    Raises:
        ConfigError: If the batch is not such a pair, with one class an example.

    Example:
        >>> import torch
        >>> class_labels((torch.zeros(2, 4), torch.tensor([1, 0])), "FedRoD")
        tensor([1, 0])
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        labels = batch[1]
        if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
            return labels
    raise ConfigError(f"{name} needs batches (inputs, labels) with one class an example.")


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
