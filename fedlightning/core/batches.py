"""Batches: the splits they come from, the number of their examples, how they are divided."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from fedlightning.errors import ConfigError, did_you_mean

__all__ = [
    "PUBLIC",
    "SPLITS",
    "Batch",
    "Split",
    "batch_length",
    "check_split",
    "class_labels",
    "inputs_of",
    "one_example",
    "split_batch",
]

Split = str
"""Name of a part of a client's data: ``train``, ``val``, ``test``, or what a data module adds."""

SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""The splits that every data module has."""

PUBLIC: Split = "public"
"""The split of the examples, of no client, that the server and all clients have."""

Batch = Any
"""The argument of ``training_step``: ``(inputs, labels)`` unless the data defines it otherwise."""


def check_split(split: str) -> None:
    """Refuse a name that is not a split.

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


def class_labels(batch: Batch, needed_by: str) -> Tensor:
    """Return the labels of a batch ``(inputs, labels)``, int64 in most cases, shape (n,).

    Args:
        batch: The batch.
        needed_by: The method that needs classes, for the message.

    Raises:
        ConfigError: The batch has another form, or does not have one class for each example.

    Example:
        >>> import torch
        >>> class_labels((torch.zeros(2, 5), torch.tensor([1, 0])), "FedRoD")
        tensor([1, 0])
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        labels = batch[1]
        if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
            return labels
    raise ConfigError(f"{needed_by} needs batches (inputs, labels) with one class per example.")


def inputs_of(batch: Batch) -> Any:
    """Return what a network is given of a batch: its first item, or all of what is not a tuple.

    Example:
        >>> inputs_of(("inputs", "labels")), inputs_of("inputs")
        ('inputs', 'inputs')
    """
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def batch_length(batch: Batch) -> int:
    """Return the number of examples in a batch: the length of the first tensor in it.

    Containers are searched as Lightning does for the ``batch_size`` of ``self.log``: sequences,
    mappings and other iterables by their values, dataclasses by their fields. Warn, once, if the
    batch holds anything after the first tensor that is not a tensor of the same length, or holds no
    tensor at all; the length is then 1.

    Example:
        >>> import torch
        >>> batch_length({"text": ["a", "b"], "ids": torch.zeros(2, 5), "y": torch.zeros(2)})
        2
    """
    kind = type(batch)
    if kind is tuple or kind is list or kind is dict:  # the usual cases, in a third of the time
        length = -1
        for child in batch.values() if kind is dict else batch:
            if type(child) is not Tensor or not child.dim():
                break
            size = child.size(0)
            if length < 0:
                length = size
            elif size != length:
                break
        else:
            if length >= 0:
                return length
    return _length_of_any(batch)


def split_batch(batch: Batch, pieces: int) -> list[Batch]:
    """Return a batch's examples in a number of pieces of nearly equal size, in order.

    Tensors, arrays and lists with one entry per example are divided, wherever the batch holds them;
    everything else is the same in each piece. A batch with fewer than two examples per piece (one
    is not enough for BatchNorm) is not divided: every piece is the whole batch.

    Args:
        batch: Tensors in any nesting of sequences, mappings and dataclasses.
        pieces: Number of pieces.

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


def one_example(batch: Batch, index: int) -> Batch:
    """Return a batch of one of a batch's examples.

    Args:
        batch: Tensors in any nesting of sequences, mappings and dataclasses.
        index: The example's place in it.

    Example:
        >>> import torch
        >>> [part.tolist() for part in one_example((torch.arange(3), torch.tensor([5, 6, 7])), 1)]
        [[1], [6]]
    """
    return _slice(batch, batch_length(batch), index, index + 1)


def _length_of_any(batch: Batch) -> int:
    length = None
    for found in _lengths(batch):
        if length is None:
            length = found
        elif found != length:
            _warn_once(
                "the batch size is ambiguous: beside the first tensor the batch holds something "
                "that is not a tensor of the same length. The first tensor's length is used; pass "
                "self.log(..., batch_size=...) to set it."
            )
            break
    if length is None and batch is not None:
        _warn_once(
            "the batch holds no tensor, so it counts as one example; pass "
            "self.log(..., batch_size=...) to set its size."
        )
    return 1 if length is None else length


def _lengths(batch: Batch) -> Iterator[int | None]:
    """Yield the length of every tensor in a batch, and None for anything else in it."""
    if isinstance(batch, Tensor):
        yield batch.size(0) if batch.dim() else 1
    elif isinstance(batch, np.ndarray):
        yield from [None] * bool(batch.size)
    elif isinstance(batch, Iterable) and not isinstance(batch, (str, Iterator)):
        for child in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _lengths(child)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _lengths(getattr(batch, field.name))
    else:
        yield None


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _slice(batch: Batch, length: int, start: int, end: int) -> Batch:
    """Return some of a batch's examples; ``length`` is the number of all."""
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch[start:end] if batch.ndim and len(batch) == length else batch
    if isinstance(batch, (list, tuple)) and _is_per_example(batch, length):
        return batch[start:end]
    return _map_children(lambda child: _slice(child, length, start, end), batch)


def _is_per_example(batch: list[Any] | tuple[Any, ...], length: int) -> bool:
    """Whether a sequence has an entry per example, rather than entries with all examples."""
    if len(batch) != length:
        return False
    found = list(_lengths(batch))
    return not found or any(value != length for value in found)


def _map_children(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Return a container with ``function`` applied to its children; anything else unchanged."""
    if type(batch) is dict:
        return {key: function(value) for key, value in batch.items()}
    if isinstance(batch, MutableMapping):  # of a class of its own, such as a tokenizer's
        mapped = copy.copy(batch)
        for key, value in batch.items():
            mapped[key] = function(value)
        return mapped
    if isinstance(batch, Mapping):
        return type(batch)({key: function(value) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(function, batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map(function, batch))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = copy.copy(batch)
        for field in dataclasses.fields(batch):
            value = function(getattr(batch, field.name))
            object.__setattr__(changed, field.name, value)  # which a frozen one allows, too
        return changed
    return batch
