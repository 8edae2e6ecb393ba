"""Data that was loaded, divided and checked: two pools of examples and every client's share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.core.batches import Split
from fedlightning.core.seeding import Key
from fedlightning.datamodules.checks import empty_tests, find_fault
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.client_roles import LARGE, listed_clients
from fedlightning.datamodules.client_splits import ClientSplit
from fedlightning.datamodules.description import (
    content_digest,
    fingerprint,
    partition_csv,
    summarize,
)
from fedlightning.datamodules.examples import Examples, has_classes
from fedlightning.datamodules.index_lists import ClientSplits, IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition, check_assignment
from fedlightning.datamodules.partitions.from_file import write_partition_file
from fedlightning.errors import ConfigError, DataError
from fedlightning.storage.files import write_atomically
from fedlightning.storage.run_layout import PARTITION, PARTITION_TABLE

__all__ = ["PooledData", "count_classes", "divide", "hold_out", "prepare", "sample_name"]


@dataclass(frozen=True)
class PooledData(ClientData):
    """Two pools of examples and every client's share of them.

    Attributes:
        train: The pool that the splits "train" and "val" index.
        test: The pool that the split "test" indexes.
        num_classes: Number of classes; 0 for data without classes.
        partition: The rule that divided the pools.
        seed: The seed it used.
        assignment: Each client's examples before any were held out.
        splits: Each client's examples by split.
    """

    train: Examples
    test: Examples
    num_classes: int
    partition: Partition
    seed: int
    assignment: Assignment
    splits: ClientSplits

    @property
    def num_clients(self) -> int:  # type: ignore[override]
        """Number of clients."""
        return len(self.splits.train)

    @property
    def rule(self) -> str:  # type: ignore[override]
        """The partition and its seed, in words."""
        return f"{self.partition!r}, seed {self.seed}"

    @property
    def lowest_label(self) -> int:
        """The lowest label of both pools; 0 for data without classes."""
        return _label_range(self.train, self.test)[0]

    def size(self, client: int, split: Split) -> int:
        """Return the number of a client's examples."""
        return self.splits.size(split, client)

    def indices(self, client: int, split: Split) -> np.ndarray:
        """Return a client's indices into the split's pool."""
        return self.splits.of(split, client)

    def pool(self, client: int, split: Split) -> Examples:
        """Return the pool that a split indexes, the same for all clients."""
        return self.test if split == "test" else self.train

    def digest(self) -> str:
        """Return the SHA-256 of all index lists of the three splits."""
        return self.splits.digest()

    def fingerprint(self) -> str:
        """Return a digest of both pools; see :func:`~.description.fingerprint`."""
        return fingerprint(self.train, self.test)

    def content_digest(self) -> str:
        """Return a digest of both pools' inputs; see :func:`~.description.content_digest`."""
        return content_digest(self.train, self.test)

    def table(self, split: Split, clients: int | None = None) -> np.ndarray:
        """Count the examples per client and class; see :meth:`ClientData.table`."""
        labels = self.pool(0, split).labels
        if labels is None or not has_classes(labels) or not self.num_classes:
            return super().table(split, clients)
        return self.splits.table(split, labels, self.num_classes, clients)

    def summary(self) -> str:
        """Return a few readable lines: clients, samples, classes, digest."""
        return summarize(self.splits, self.table("train"), self.rule)

    def write(self, folder: Path, dataset: str, names: Sequence[str] | None = None) -> None:
        """Write ``partition.csv`` and ``partition.json``, of very many clients the first ones."""
        table = self.table("train", listed_clients(self.num_clients))
        write_atomically(
            folder / PARTITION_TABLE, partition_csv(self.splits, table, names).encode()
        )
        self.save(folder / PARTITION, dataset, listed=self.num_clients <= LARGE)

    def save(self, path: str | os.PathLike[str], dataset: str, listed: bool = True) -> None:
        """Write a partition file, with or without the clients' indices."""
        about = {
            "dataset": dataset,
            "partition": repr(self.partition),
            "seed": self.seed,
            "num_clients": self.num_clients,
            "digest": self.digest(),
        }
        write_partition_file(
            path, self.assignment, len(self.train), len(self.test), about, listed=listed
        )


def prepare(
    train: Examples,
    test: Examples,
    *,
    num_clients: int,
    num_classes: int,
    partition: Partition,
    val_fraction: float,
    seed: int,
    sample: Callable[[int, Split, int], int],
    check: bool = True,
    split: ClientSplit | None = None,
) -> PooledData:
    """Divide two pools, hold examples out, and check every client's share.

    Args:
        train: Training examples.
        test: Test examples.
        num_clients: Number of clients.
        num_classes: Number of classes; 0 for data without classes.
        partition: The rule.
        val_fraction: Share of each client's training examples to hold out.
        seed: Seed of the partition and of the held-out examples.
        sample: Returns the number by which messages name (client, split, index in the pool).
        check: Whether to check the examples themselves as well as the partition.
        split: How validation data are chosen; None means at random.

    Raises:
        ConfigError: The partition needs labels, but the data has no classes.
        DataError: The data cannot be divided or used.
        FederationError: An item of a dataset raised.
    """
    key = Key(seed, "partition")
    assignment = divide(train, test, partition, num_clients, num_classes, key.numpy())
    # A separate stream (round 1): holding examples out does not change the partition.
    held_out = key.at(round=1).numpy()
    if split is None:
        splits = hold_out(assignment, val_fraction, held_out)
    else:
        rest, val = split.divide(assignment.train, split.values(train), val_fraction, held_out)
        splits = ClientSplits(train=rest, val=val, test=assignment.test)
    fault = find_fault(train, test, splits, num_classes) if check else None
    if fault is not None:
        client = splits.owner(fault.split, fault.row)
        number = sample(client, fault.split, fault.row)
        raise fault.error(f"{sample_name(client, fault.split, number)}: {fault.text}")
    warning = empty_tests(splits.sizes("test"))
    if warning:
        rank_zero_warn(warning)
    return PooledData(train, test, num_classes, partition, seed, assignment, splits)


def sample_name(client: int, split: Split, number: int) -> str:
    """Return the name of an example in messages.

    Example:
        >>> sample_name(3, "train", 17), sample_name(3, "test", 17)
        ('client 3, sample 17', 'client 3, test sample 17')
    """
    return f"client {client}, {'test ' if split == 'test' else ''}sample {number}"


_SURELY_CLASSES = 100


def count_classes(train: Examples, test: Examples) -> int:
    """Return the highest label plus one, or 0 for data without classes.

    Warn if class 0 has no example: a sign of classes numbered from 1.

    Raises:
        DataError: There would be more classes than examples, and more than 100.

    Example:
        >>> from fedlightning.datamodules.examples import TensorExamples
        >>> count_classes(TensorExamples(np.zeros(3), [0, 4, 1]), TensorExamples(np.zeros(1), [2]))
        5
    """
    lowest, highest = _label_range(train, test)
    if highest >= max(_SURELY_CLASSES, len(train) + len(test)):
        raise DataError(
            f"labels are whole numbers up to {highest:,}, and so would be as many classes, but "
            f"there are {len(train) + len(test):,} examples: make them floats if they are the "
            f"targets of a regression, or set num_classes={highest + 1} if they are classes"
        )
    if lowest > 0:
        rank_zero_warn(
            f"labels start at {lowest}: class 0 has no example. If the classes are numbered from "
            f"{lowest}, subtract {lowest} from the labels; if not, set num_classes={highest + 1}."
        )
    return highest + 1


def _label_range(train: Examples, test: Examples) -> tuple[int, int]:
    """Return the lowest and the highest label, or (0, -1) for data without classes."""
    pools = [pool.labels for pool in (train, test) if len(pool)]
    if not pools or not all(has_classes(labels) for labels in pools):
        return 0, -1
    known = [labels for labels in pools if labels is not None]
    return min(int(labels.min()) for labels in known), max(int(labels.max()) for labels in known)


def divide(
    train: Examples,
    test: Examples,
    partition: Partition,
    num_clients: int,
    num_classes: int,
    rng: np.random.Generator,
) -> Assignment:
    """Apply a partition to two pools.

    Args:
        train: Training examples.
        test: Test examples.
        partition: The rule.
        num_clients: Number of clients.
        num_classes: Number of classes; 0 for data without classes.
        rng: The only source of randomness.

    Raises:
        ConfigError: The partition needs labels, but the data has no classes.
        DataError: The partition cannot divide the data.

    Example:
        >>> from fedlightning.datamodules import IID, TensorExamples
        >>> pool = TensorExamples(np.zeros(3), [0, 1, 1])
        >>> divide(pool, pool, IID(), 4, 2, np.random.default_rng(0))
        Traceback (most recent call last):
        fedlightning.errors.DataError: 4 clients > 3 samples; lower num_clients
    """
    if num_clients > len(train):
        raise DataError(f"{num_clients} clients > {len(train)} samples; lower num_clients")
    labelled = all(has_classes(pool.labels) for pool in (train, test) if len(pool))
    if partition.needs_labels and not (labelled and num_classes):
        raise ConfigError(
            f"partition={partition!r} needs one integer label per example, but this data has "
            f"{_label_format(train, test)}"
        )
    assignment = partition.bound(train, test).assign(
        _classes(train, num_classes), _classes(test, num_classes), num_clients, num_classes, rng
    )
    check_assignment(assignment, len(train), len(test), num_clients)
    return Assignment(train=IndexLists.of(assignment.train), test=IndexLists.of(assignment.test))


def hold_out(assignment: Assignment, fraction: float, rng: np.random.Generator) -> ClientSplits:
    """Take a random share of each client's training examples for validation.

    Both parts keep the stored order. A client keeps at least one training example, so a client with
    a single one has no validation data.

    Args:
        assignment: Each client's examples.
        fraction: Share of a client's training examples, rounded to a whole number, in [0, 1).
        rng: The only source of randomness.

    Example:
        >>> given = Assignment(train=[np.arange(10), np.array([17])], test=[np.arange(2)] * 2)
        >>> splits = hold_out(given, 0.2, np.random.default_rng(0))
        >>> splits.sizes("train").tolist(), splits.sizes("val").tolist()
        ([8, 1], [2, 0])
    """
    whole = IndexLists.of(assignment.train)
    sizes = whole.sizes
    taken = np.maximum(np.minimum(np.rint(fraction * sizes).astype(np.int64), sizes - 1), 0)
    if not taken.any():
        none = IndexLists(whole.flat[:0], taken)
        return ClientSplits(train=whole, val=none, test=assignment.test)
    # The first ones of a random order of each client's examples are held out.
    client = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((rng.random(len(client)), client))
    within = np.arange(len(client)) - whole.edges[client]
    held = np.zeros(len(client), bool)
    held[order] = within < taken[client]
    return ClientSplits(
        train=IndexLists(whole.flat[~held], sizes - taken),
        val=IndexLists(whole.flat[held], taken),
        test=assignment.test,
    )


def _label_format(*pools: Examples) -> str:
    """Return what a pool has in place of classes, and what to do about it."""
    for pool in pools:
        labels = pool.labels
        if labels is None or has_classes(labels) or not len(pool):
            continue
        if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype == np.int64:
            return f"labels of shape (n, 1) = {labels.shape}; pass labels[:, 0]"
        return f"{labels.dtype} labels of shape {labels.shape}; use IID()"
    return "none; use IID()"


def _classes(pool: Examples, num_classes: int) -> np.ndarray:
    """Return the labels that a partition sees.

    A label outside the classes is moved inside, so that the example belongs to a client: the check
    of the divided data, which refuses the label, can then name it.
    """
    if pool.labels is None or not has_classes(pool.labels) or not num_classes:
        return np.zeros(len(pool), np.int64)
    inside: np.ndarray = np.clip(pool.labels, 0, num_classes - 1)
    return inside
