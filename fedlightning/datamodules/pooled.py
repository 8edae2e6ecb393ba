"""Data that are loaded, divided and checked: pools of examples and every client's share of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.datamodules.checks import empty_tests, find_fault
from fedlightning.datamodules.division import divide, hold_out
from fedlightning.datamodules.examples import Examples, has_classes
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.datamodules.partitions.from_file import write_partition_file
from fedlightning.datamodules.population import LARGE, listed_clients
from fedlightning.datamodules.description import partition_csv, summarize
from fedlightning.datamodules.index_lists import ClientSplits
from fedlightning.datamodules.loaders import Split
from fedlightning.storage.files import write_atomically
from fedlightning.core.seeding import Key

__all__ = ["Divided", "prepare", "sample_name"]


@dataclass(frozen=True)
class Divided(ClientData):
    """Two pools of examples and every client's share of them.

    Attributes:
        train: The pool that the splits "train" and "val" index.
        test: The pool that the split "test" indexes.
        num_classes: Number of classes; 0 where the data have none.
        partition: The rule that divided them.
        seed: The seed that it used.
        assignment: What the rule gave each client, before examples were held out.
        splits: What each client has.
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

    def size(self, client: int, split: Split) -> int:
        """Return how many examples a client has."""
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

    def table(self, split: Split, clients: int | None = None) -> np.ndarray:
        """Count the examples by client and class; see :meth:`ClientData.table`."""
        labels = self.pool(0, split).labels
        if labels is None or not has_classes(labels) or not self.num_classes:
            return super().table(split, clients)
        return self.splits.table(split, labels, self.num_classes, clients)

    def summary(self) -> str:
        """Return a few readable lines: clients, samples, classes, digest."""
        return summarize(self.splits, self.table("train"), self.rule)

    def write(self, folder: Path, dataset: str) -> None:
        """Write ``partition.csv`` and ``partition.json``; of very many clients, the first ones."""
        table = self.table("train", listed_clients(self.num_clients))
        write_atomically(folder / "partition.csv", partition_csv(self.splits, table).encode())
        self.save(folder / "partition.json", dataset, listed=self.num_clients <= LARGE)

    def save(self, path: str | os.PathLike[str], dataset: str, listed: bool = True) -> None:
        """Write a partition file, with everybody's indices or without."""
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
) -> Divided:
    """Divide two pools, hold examples out, and check what the clients got.

    Args:
        train: Training examples.
        test: Test examples.
        num_clients: Number of clients.
        num_classes: Number of classes; 0 where the data have none.
        partition: The rule.
        val_fraction: Share of each client's training examples to hold out.
        seed: Seed of the division and of what is held out.
        sample: Gives the number that a message uses for (client, split, index in the pool).
        check: Whether to look at the examples themselves, and not at their division alone.

    Raises:
        ConfigError: The partition needs labels, and the data have no classes.
        DataError: The data cannot be divided or used.
        FederationError: An item of a dataset raised.
    """
    key = Key(seed, "partition")
    assignment = divide(train, test, partition, num_clients, num_classes, key.numpy())
    # A stream of its own (round 1): what is held out changes nobody's share.
    splits = hold_out(assignment, val_fraction, key.at(round=1).numpy())
    fault = find_fault(train, test, splits, num_classes) if check else None
    if fault is not None:
        client = splits.owner(fault.split, fault.row)
        number = sample(client, fault.split, fault.row)
        raise fault.error(f"{sample_name(client, fault.split, number)}: {fault.text}")
    warning = empty_tests(splits.sizes("test"))
    if warning:
        rank_zero_warn(warning)
    return Divided(train, test, num_classes, partition, seed, assignment, splits)


def sample_name(client: int, split: Split, number: int) -> str:
    """Return how messages name an example.

    Example:
        >>> sample_name(3, "train", 17), sample_name(3, "test", 17)
        ('client 3, sample 17', 'client 3, test sample 17')
    """
    return f"client {client}, {'test ' if split == 'test' else ''}sample {number}"
