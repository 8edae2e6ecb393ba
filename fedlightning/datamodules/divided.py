"""Data that are loaded, divided and checked: what a data module holds after ``setup``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.datamodules.checks import empty_tests, find_fault
from fedlightning.datamodules.division import divide, hold_out
from fedlightning.datamodules.examples import Examples, has_classes
from fedlightning.datamodules.partition import Assignment, Partition
from fedlightning.datamodules.splits import ClientSplits
from fedlightning.datamodules.tasks import Split
from fedlightning.seeding import Key

__all__ = ["Divided", "prepare"]


@dataclass(frozen=True)
class Divided:
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

    def pool(self, split: Split) -> Examples:
        """Return the examples that a split indexes."""
        return self.test if split == "test" else self.train

    def table(self, split: Split) -> np.ndarray:
        """Return the examples by client and class, int64, shape (num_clients, num_classes)."""
        labels = self.pool(split).labels
        if labels is None or not has_classes(labels) or not self.num_classes:
            return np.zeros((len(self.splits.train), 0), np.int64)
        return self.splits.table(split, labels, self.num_classes)


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

    Raises:
        ConfigError: The partition needs labels, and the data have no classes.
        DataError: The data cannot be divided or used.
        FederationError: An item of a dataset raised.
    """
    key = Key(seed, "partition")
    assignment = divide(train, test, partition, num_clients, num_classes, key.numpy())
    # A stream of its own (round 1): what is held out changes nobody's share.
    splits = hold_out(assignment, val_fraction, key.at(round=1).numpy())
    fault = find_fault(train, test, splits, num_classes)
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
