"""The check of divided data for examples that no client can train or be evaluated on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedlightning.core.batches import SPLITS, Split
from fedlightning.datamodules.examples import Examples, has_classes
from fedlightning.datamodules.index_lists import ClientSplits
from fedlightning.errors import DataError, FedLightningError

__all__ = ["Fault", "check_batches", "empty_tests", "fault_in", "find_fault"]


class Fault(NamedTuple):
    """An example that cannot be used.

    Attributes:
        split: The split that holds it.
        row: Its index in that split's pool.
        text: Description of the fault.
        error: The error to raise.
    """

    split: Split
    row: int
    text: str
    error: type[FedLightningError]


def find_fault(
    train: Examples, test: Examples, splits: ClientSplits, num_classes: int
) -> Fault | None:
    """Return a label outside the classes, a non-finite number, or an item that raised, if any.

    Only examples that a client holds are checked, training examples first.

    Args:
        train: The pool that the splits "train" and "val" index.
        test: The pool that the split "test" indexes.
        splits: Every client's indices.
        num_classes: Number of classes; 0 for data without classes.

    Example:
        >>> from fedlightning.datamodules.examples import TensorExamples
        >>> pool = TensorExamples(np.zeros((3, 1)), [0, 7, 1])
        >>> zero, one, two = np.array([0]), np.array([1]), np.array([2])
        >>> splits = ClientSplits(train=[one], val=[two], test=[zero])
        >>> find_fault(pool, pool, splits, num_classes=3).text
        'label 7 not in [0, 3)'
    """
    for split in SPLITS:
        pool = test if split == "test" else train
        fault = fault_in(pool, splits.parts(split).flat, split, num_classes)
        if fault is not None:
            return fault
    return None


def fault_in(pool: Examples, rows: np.ndarray, split: Split, num_classes: int) -> Fault | None:
    """Return the first fault among the examples ``rows`` of a pool, if any."""
    fault = pool.fault(rows)
    if fault is not None:
        return Fault(split, *fault, pool.fault_error)
    fault = _label_fault(pool.labels, rows, num_classes)
    return None if fault is None else Fault(split, *fault, DataError)


def check_batches(sizes: np.ndarray, batch_size: int) -> None:
    """Refuse clients without a whole batch, for training that drops a last, shorter one.

    Args:
        sizes: Number of training examples of every client.
        batch_size: Examples per batch.

    Raises:
        DataError: A client has fewer examples than a batch.

    Example:
        >>> check_batches(np.array([64, 40]), batch_size=64)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedlightning.errors.DataError: client 1: 0 batches (40 < 64); lower ...
    """
    short = np.flatnonzero(sizes < batch_size)
    if short.size:
        raise DataError(
            f"client {short[0]}: 0 batches ({sizes[short[0]]} < {batch_size}); "
            f"lower batch_size or set drop_last=false"
        )


def empty_tests(sizes: np.ndarray) -> str:
    """Return a warning about clients without test examples, or an empty string.

    Args:
        sizes: Number of test examples of every client.

    Example:
        >>> empty_tests(np.array([3, 0, 2, 0]))
        '2 of 4 clients have no test examples and are not evaluated: 1, 3'
    """
    empty = np.flatnonzero(sizes == 0)
    if not empty.size:
        return ""
    more = ", ..." if empty.size > 10 else ""
    return (
        f"{empty.size} of {len(sizes)} clients have no test examples and are not evaluated: "
        f"{', '.join(map(str, empty[:10]))}{more}"
    )


def _label_fault(
    labels: np.ndarray | None, rows: np.ndarray, num_classes: int
) -> tuple[int, str] | None:
    if labels is not None and labels.dtype.kind == "f" and len(rows):
        bad = rows[~np.isfinite(labels[rows].reshape(len(rows), -1)).all(axis=1)]
        return (
            (int(bad[0]), f"label {labels[bad[0]]}: missing, or not finite") if bad.size else None
        )
    if labels is None or not has_classes(labels) or not num_classes:
        return None
    held = labels[rows]
    bad = np.flatnonzero((held < 0) | (held >= num_classes))
    if not bad.size:
        return None
    text = f"label {held[bad[0]]} not in [0, {num_classes})"
    if held.min() == 1 and held.max() == num_classes:
        text += "; labels start at 1: subtract 1"
    return int(rows[bad[0]]), text
