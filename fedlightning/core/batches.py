"""Batches: what a split is, how many examples a batch has, how a batch is divided."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["SPLITS", "Batch", "Split", "batch_length", "check_split", "split_batch"]


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


Split = str
"""Name of a part of a client's data: ``train``, ``val``, ``test``, or what a data module adds."""


Batch = Any
"""What a client's ``training_step`` gets: ``(inputs, labels)`` unless the data say otherwise."""


SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""The splits that every data module has."""


def check_split(split: str) -> None:
    """Refuse a name that is none of the splits.

    Raises:
        ConfigError: ``split`` is not "train", "val" or "test".

    Example:
        >>> check_split("tset")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: split must be ..., got 'tset'. Did you mean 'test'?
    """
    if split not in SPLITS:
        raise ConfigError(
            f"split must be train, val or test, got {split!r}.{did_you_mean(split, SPLITS)}"
        )


def batch_length(batch: Any) -> int:
    """Return the number of examples in a batch: the length of the first tensor found in it.

    Example:
        >>> import torch
        >>> batch_length({"x": torch.zeros(5, 2), "y": torch.zeros(5)})
        5
        >>> batch_length("no tensor")
        1
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    children = batch.values() if isinstance(batch, dict) else batch
    if isinstance(children, (list, tuple)) or isinstance(batch, dict):
        for child in children:
            if isinstance(child, (Tensor, dict, list, tuple)):
                return batch_length(child)
    return 1
