"""Dividing a local batch into disjoint pieces."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedlightning.engine.local_log import batch_length

__all__ = ["split_batch"]


def split_batch(batch: Any, pieces: int) -> list[Any]:
    """Return a batch's examples in so many pieces, as equal as can be, in order.

    A batch that does not have two examples for each piece (BatchNorm cannot do with one) stands
    for every piece itself.

    Args:
        batch: A tensor, or tuples, lists and dicts of tensors with the examples first.
        pieces: Their number.

    Example:
        >>> import torch
        >>> [x.tolist() for x, y in split_batch((torch.arange(5), torch.arange(5)), 2)]
        [[0, 1, 2], [3, 4]]
        >>> len(split_batch((torch.arange(3), torch.arange(3)), 2)[0][0])
        3
    """
    length = batch_length(batch)
    if length < 2 * pieces:
        return [batch] * pieces
    size, more = divmod(length, pieces)
    ends = [size * (i + 1) + min(i + 1, more) for i in range(pieces)]
    return [_slice(batch, length, start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _slice(batch: Any, length: int, start: int, end: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:end] if batch.ndim and len(batch) == length else batch
    if isinstance(batch, dict):
        return {key: _slice(value, length, start, end) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_slice(value, length, start, end) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_slice(value, length, start, end) for value in batch)
    return batch
