"""Accuracy class by class, counted from the logits that a module computes while it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning.core.batches import Batch

__all__ = ["ClassCounts"]


class ClassCounts:
    """How many examples of each class one client has, and how many of them are classified right.

    Example:
        >>> counts, identity = ClassCounts(), nn.Identity()
        >>> batch = torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2])
        >>> with counts.watching(identity):
        ...     _ = identity(batch[0])
        ...     counts.add(batch)
        >>> counts.accuracies()
        {0: 1.0, 1: 1.0, 2: 0.0}
    """

    def __init__(self) -> None:
        self._outputs: list[Any] = []
        self._counts: list[Tensor] = []

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Take note of what a module returns, inside the ``with`` block."""
        handle = module.register_forward_hook(lambda _, args, outputs: self._take(outputs))
        try:
            yield
        finally:
            handle.remove()

    def _take(self, outputs: Any) -> None:
        self._outputs.append(outputs)

    def add(self, batch: Batch) -> None:
        """Count a batch of inputs and classes; of other batches nothing is counted."""
        outputs, self._outputs = self._outputs, []
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point() or (y < 0).any():
            return
        logits = next((each for each in reversed(outputs) if _are_logits(each, len(y))), None)
        if logits is None:
            return
        right = y[logits.argmax(dim=-1) == y]
        size = logits.shape[1]
        counts = [torch.bincount(each, minlength=size)[:size].cpu() for each in (y, right)]
        self._counts.append(torch.stack(counts))

    def accuracies(self) -> dict[int, float]:
        """Return the accuracy of each class that there are examples of."""
        if not self._counts:
            return {}
        total, right = torch.stack(self._counts).sum(dim=0).tolist()
        return {at: right[at] / count for at, count in enumerate(total) if count}


def _are_logits(outputs: Any, size: int) -> bool:
    return isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == size
