"""What the body makes of a client's examples, and models that are asked about that alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor, nn

from fedlightning.datamodules import Batch

__all__ = [
    "FeatureBatch",
    "NoFeatures",
    "fed_with_features",
    "joined",
    "nearest_mean_accuracy",
    "pooling_without_indices",
    "read_features",
]

FeatureBatch = tuple[Tensor, Tensor]
"""What the head gets, shape (n, ...), and the labels, int64, shape (n,)."""

_ROWS = 64  # larger batches of a convolutional network's activations do not fit the cache


class NoFeatures(Exception):
    """Features of examples with one class each cannot be had from these batches."""


@torch.no_grad()
def read_features(
    module: pl.LightningModule,
    head: nn.Module,
    batches: Iterable[Batch],
    precision: Precision,
    *,
    one_by_one: bool = False,
) -> list[FeatureBatch]:
    """Return the features of batches of ``(inputs, labels)``.

    Args:
        module: The model, in the mode to run it in.
        head: Its head: the features are its inputs.
        batches: What the model gets.
        precision: The trainer's precision plugin.
        one_by_one: Whether the body makes of an example what is in that alone, so that batches may
            be cut to a size that fits the cache; and the head's output must be the model's.

    Raises:
        NoFeatures: If there are none, or not such.
    """
    name = type(module).__name__
    calls: list[tuple[Tensor, Any]] = []
    read: list[FeatureBatch] = []
    handle = head.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    try:
        with pooling_without_indices(module):
            for batch in batches:
                x, y = _classified(batch)
                pieces = []
                for piece in _cut(x) if one_by_one else (x,):
                    calls.clear()
                    with precision.test_step_context():
                        try:
                            outputs = module(piece)
                        except Exception as error:
                            raise NoFeatures(f"{name}.forward(inputs) fails: {error}") from error
                    if len(calls) != 1:
                        raise NoFeatures(f"{name}.forward calls its head {len(calls)} times")
                    features, made_of_them = calls[0]
                    if one_by_one and (made_of_them is not outputs or features.ndim != 2):
                        raise NoFeatures(f"{name}.forward(inputs) is not its head's output")
                    pieces.append(features.flatten(1))
                read.append((torch.cat(pieces), y))
    finally:
        handle.remove()
    return read


def joined(batches: list[FeatureBatch]) -> FeatureBatch:
    """Return batches, of which there is at least one, as one."""
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@contextmanager
def fed_with_features(module: pl.LightningModule, head: nn.Module) -> Iterator[None]:
    """Have ``module(features)`` be what the head makes of them, inside the ``with`` block."""
    vars(module)["forward"] = head.forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def nearest_mean_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> float:
    """Return the share of test points whose nearest class mean is that of their own class.

    Args:
        train: Features to take means of, shape (n, d).
        train_labels: Their classes, shape (n,).
        test: Features to classify, shape (m, d).
        test_labels: Their classes, shape (m,).

    Example:
        >>> train = torch.tensor([[0.0], [2.0], [10.0]])
        >>> nearest_mean_accuracy(train, torch.tensor([0, 0, 1]),
        ...                       torch.tensor([[1.5], [9.0], [4.0]]), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    classes: Tensor = train_labels.unique()  # type: ignore[no-untyped-call]
    means = torch.stack([train[train_labels == label].mean(dim=0) for label in classes])
    nearest = classes[torch.cdist(test, means).argmin(dim=1)]
    return int((nearest == test_labels).sum()) / len(test_labels)


@contextmanager
def pooling_without_indices(module: nn.Module) -> Iterator[None]:
    """Have 2x2 max-pools look for the maximum alone, inside the ``with`` block: the same values.

    Torch's own also notes where each maximum was, which only a backward pass needs, and which takes
    a good part of a small network's forward pass on a CPU.
    """
    pools = [
        child
        for child in module.modules()
        if type(child) is nn.MaxPool2d
        and all(size in (2, (2, 2)) for size in (child.kernel_size, child.stride))
        and (child.padding, child.dilation) == (0, 1)
        and not (child.ceil_mode or child.return_indices or "forward" in vars(child))
    ]
    for pool in pools:
        vars(pool)["forward"] = _largest_of_2x2
    try:
        yield
    finally:
        for pool in pools:
            del vars(pool)["forward"]


def _largest_of_2x2(x: Tensor) -> Tensor:
    """Return the maxima of all 2x2 windows; an odd last row or column is left out.

    Example:
        >>> _largest_of_2x2(torch.arange(15.0).view(1, 3, 5))
        tensor([[[6., 8.]]])
    """
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _cut(x: Any) -> tuple[Any, ...]:
    """Return a batch in pieces; a device with memory of its own gets it whole."""
    on_cpu = isinstance(x, Tensor) and x.device.type == "cpu"
    return x.split(_ROWS) if on_cpu else (x,)


def _classified(batch: Any) -> FeatureBatch:
    """Return inputs and classes of a batch."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise NoFeatures("batches are not pairs of inputs and labels")
    x, y = batch
    if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point():
        raise NoFeatures("labels are not one class an example")
    return x, y
