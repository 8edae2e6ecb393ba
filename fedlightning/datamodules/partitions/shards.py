"""The shard partition: every client gets a fixed number of label-pure pieces."""

from __future__ import annotations

import math

import numpy as np

from fedlightning.core.validation import check_integer
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.errors import DataError

__all__ = ["Shards"]


class Shards(Partition):
    """Every client gets ``per_client`` shards, each of one class.

    Each class is cut, in dataset order, into ``per_client * num_clients / num_classes`` contiguous
    shards of equal size (leftovers go one each to the first shards). The list of every class,
    repeated once per shard, is shuffled and cut into one row of labels per client; for each label
    in its row the client takes one random remaining shard of it. The test examples are cut by the
    same rule with the same rows, so a client's test data has its training data's labels in the same
    proportions.

    A row may hold a label twice: ``per_client`` counts shards, not classes. A client's indices are
    in the order of its row, ascending inside a shard.

    Args:
        per_client: Number of shards per client; times ``num_clients`` it must be a multiple of the
            number of classes.

    Raises:
        ConfigError: ``per_client`` is not an integer >= 1.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
        >>> rng = np.random.default_rng(0)
        >>> parts = Shards(per_client=2).assign(labels, labels[:4], 2, num_classes=2, rng=rng)
        >>> [len(part) for part in parts.train], [len(part) for part in parts.test]
        ([4, 4], [2, 2])

    Reference:
        Oh, Kim, Yun. FedBABU: Toward Enhanced Representation for Federated Image Classification.
        ICLR 2022. https://arxiv.org/abs/2106.06042
    """

    def __init__(self, per_client: int) -> None:
        self.per_client = check_integer("per_client", per_client, at_least=1)

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Cut and deal the shards; see :meth:`Partition.assign`."""
        shards = self.per_client * num_clients
        if shards % num_classes:
            raise DataError(
                f"{shards} shards ({num_clients} clients x per_client={self.per_client}) cannot be "
                f"divided evenly over {num_classes} classes; nearest valid values: per_client="
                f"{_nearest(self.per_client, num_clients, num_classes)}, or num_clients="
                f"{_nearest(num_clients, self.per_client, num_classes)}"
            )
        rows = rng.permutation(np.repeat(np.arange(num_classes), shards // num_classes))
        rows = rows.reshape(num_clients, self.per_client)
        train = _deal(rows, train_labels, num_classes, rng)
        test = _deal(rows, test_labels, num_classes, rng)
        empty = np.flatnonzero(train.sizes == 0)
        if empty.size:
            raise DataError(
                f"client {empty[0]} has 0 samples: "
                f"{_why_empty(rows[empty[0]], train_labels, shards // num_classes)}"
            )
        return Assignment(train=train, test=test)


def _why_empty(classes: np.ndarray, labels: np.ndarray, shards: int) -> str:
    """Return why the shards of these classes hold no example, and the way out."""
    absent = np.setdiff1d(classes, labels)
    if not absent.size:
        return f"class {classes[0]} is cut into {shards} shards; lower num_clients or per_client"
    first = f"labels start at {labels.min()}, " if labels.min() > absent[0] else ""
    return (
        f"{first}class {absent[0]} has no example; number the classes from 0 without gaps, or "
        f"choose another partition"
    )


def _deal(
    rows: np.ndarray, labels: np.ndarray, num_classes: int, rng: np.random.Generator
) -> IndexLists:
    """Return every client's indices: one random unused shard per label in its row."""
    per_class = rows.size // num_classes
    count = np.bincount(labels, minlength=num_classes)
    first = np.cumsum(count) - count
    shard = np.arange(per_class)
    size = count[:, None] // per_class + (shard < count[:, None] % per_class)
    start = first[:, None] + np.cumsum(size, axis=1) - size

    # The k-th occurrence of a label in the rows gets the k-th shard of a shuffled deck.
    decks = rng.permuted(np.tile(shard, (num_classes, 1)), axis=1)
    taken = np.empty(rows.size, np.int64)
    taken[np.argsort(rows, axis=None, kind="stable")] = decks.ravel()
    size, start = size[rows.ravel(), taken], start[rows.ravel(), taken]

    by_label = np.argsort(labels, kind="stable").astype(np.int64)
    ends = np.cumsum(size)
    within = np.arange(len(labels)) - np.repeat(ends - size, size)
    dealt = by_label[np.repeat(start, size) + within]
    return IndexLists(dealt, size.reshape(rows.shape).sum(axis=1))


def _nearest(value: int, other: int, multiple: int) -> str:
    """Return the values next to ``value`` whose product with ``other`` divides by ``multiple``."""
    step = multiple // math.gcd(multiple, other)
    below = value // step * step
    return f"{below} or {below + step}" if below else f"{below + step}"
