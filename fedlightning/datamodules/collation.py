"""Batches of examples of several lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from fedlightning.core.validation import Setting

__all__ = ["Pad"]


class Pad(Setting):
    """A collate function that fills sequences of several lengths up to the longest of the batch.

    Every part of an item with one length per example is padded at its end, along its first
    dimension; all else is collated as torch does. Give it as ``collate`` to a data module.

    Args:
        value: Fills inputs: the first of a pair, or every entry of a mapping.
        label_value: Fills labels, the second of a pair, or the entries ``label`` and ``labels``;
            cross-entropy ignores -100.
        lengths: Whether inputs become pairs of padded values and lengths, int64, shape (n,).

    Example:
        >>> items = [([5, 6, 7], 0), ([8], 1)]
        >>> inputs, labels = Pad()(items)
        >>> inputs.tolist(), labels.tolist()
        ([[5, 6, 7], [8, 0, 0]], [0, 1])
        >>> Pad(lengths=True)(items)[0][1].tolist()
        [3, 1]
    """

    def __init__(self, value: float = 0, label_value: float = -100, lengths: bool = False) -> None:
        self.value = value
        self.label_value = label_value
        self.lengths = lengths

    def __call__(self, items: list[Any]) -> Any:
        """Return a batch of the items."""
        first = items[0]
        if isinstance(first, tuple) and len(first) == 2:
            inputs, labels = zip(*items, strict=True)
            return self._inputs(list(inputs)), _padded(list(labels), self.label_value)
        return self._inputs(items)

    def _inputs(self, inputs: list[Any]) -> Any:
        if isinstance(inputs[0], Mapping):
            return {
                name: _padded(
                    [item[name] for item in inputs],
                    self.label_value if name in ("label", "labels") else self.value,
                )
                for name in inputs[0]
            }
        padded = _padded(inputs, self.value)
        return (padded, torch.tensor([len(each) for each in inputs])) if self.lengths else padded


def _padded(values: list[Any], fill: float) -> Any:
    """Return values of one shape stacked, sequences of several lengths padded."""
    if not isinstance(values[0], (Tensor, np.ndarray, list)):
        return default_collate(values)
    tensors = [torch.as_tensor(value) for value in values]
    if not tensors[0].ndim:
        return torch.stack(tensors)
    return pad_sequence(tensors, batch_first=True, padding_value=fill)
