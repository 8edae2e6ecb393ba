"""Partitions divide a dataset over clients: the base class, and the IID one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedlightning.core.arguments import NamedArguments
from fedlightning.datamodules.examples import Examples
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.errors import DataError

__all__ = ["IID", "Assignment", "Partition", "by_owner", "check_assignment"]


@dataclass(frozen=True)
class Assignment:
    """The examples of every client.

    Attributes:
        train: Per client, int64 indices into the training examples, in the client's stored order:
            a list of arrays, or for very many clients a
            :class:`~fedlightning.datamodules.index_lists.IndexLists`.
        test: Per client, int64 indices into the test examples, likewise.
    """

    train: Sequence[np.ndarray]
    test: Sequence[np.ndarray]


class Partition(NamedArguments, ABC):
    """A rule that divides training and test examples over clients in the same way.

    A subclass takes its settings in ``__init__``, stores each under its own name (``repr`` shows
    them), and draws every random number from the generator given to ``assign``, so that a partition
    is a pure function of the seed.
    """

    needs_labels: ClassVar[bool] = True
    """Whether the rule uses labels, and so cannot divide data without classes."""

    def bound(self, train: Examples, test: Examples) -> Partition:
        """Return the rule for two pools; one that looks at more than labels reads them here.

        Raises:
            DataError: A pool lacks what the rule looks at.
        """
        return self

    @abstractmethod
    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Divide the examples.

        Args:
            train_labels: Labels of the training examples, int64 in [0, ``num_classes``), shape
                (n,); zeros for data without classes.
            test_labels: Labels of the test examples, likewise.
            num_clients: Number of clients, at least 1 and at most n.
            num_classes: Number of classes; 0 for data without classes.
            rng: The only source of randomness.

        Returns:
            An assignment in which no index occurs twice and every client has training examples. A
            client may have no test examples.

        Raises:
            DataError: This rule cannot divide the data.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class IID(Partition):
    """Every client gets a random sample of the dataset; sizes differ by at most one example.

    A client's indices are in ascending order.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> parts = IID().assign(np.zeros(7), np.zeros(3), num_clients=3, num_classes=1, rng=rng)
        >>> [len(part) for part in parts.train], [len(part) for part in parts.test]
        ([3, 2, 2], [1, 1, 1])
    """

    needs_labels = False

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Deal the shuffled examples out like cards; see :meth:`Partition.assign`."""
        return Assignment(
            train=by_owner(rng.permutation(len(train_labels)) % num_clients, num_clients),
            test=by_owner(rng.permutation(len(test_labels)) % num_clients, num_clients),
        )


def by_owner(owner: np.ndarray, num_clients: int) -> IndexLists:
    """Return every client's indices, ascending, from the owner of each example.

    Args:
        owner: Client id of each example, -1 for examples without a client, shape (n,).
        num_clients: Number of clients.

    Example:
        >>> [part.tolist() for part in by_owner(np.array([1, 0, -1, 1]), 3)]
        [[1], [0, 3], []]
    """
    sizes = np.bincount(owner[owner >= 0], minlength=num_clients)
    order = np.argsort(owner, kind="stable")
    return IndexLists(order[len(owner) - sizes.sum() :], sizes)


def check_assignment(
    assignment: Assignment, num_train: int, num_test: int, num_clients: int
) -> None:
    """Refuse an unusable assignment.

    Args:
        assignment: The assignment that a partition returned.
        num_train: Number of training examples.
        num_test: Number of test examples.
        num_clients: Number of clients.

    Raises:
        DataError: The number of clients differs, an index is out of range or given twice, or a
            client has no training example.

    Example:
        >>> none = np.array([], int)
        >>> twice = Assignment(train=[np.array([0, 1]), np.array([1])], test=[none, none])
        >>> check_assignment(twice, num_train=2, num_test=0, num_clients=2)
        Traceback (most recent call last):
        fedlightning.errors.DataError: the partition gives training sample 1 away 2 times
    """
    for kind, parts, total in (
        ("training", assignment.train, num_train),
        ("test", assignment.test, num_test),
    ):
        if len(parts) != num_clients:
            raise DataError(
                f"the partition divides the {kind} data over {len(parts)} clients, "
                f"num_clients is {num_clients}"
            )
        given = IndexLists.of(parts).flat
        if given.dtype.kind not in "iu":
            raise DataError(f"the partition's {kind} indices must be integers, got {given.dtype}")
        outside = given[(given < 0) | (given >= total)]
        if outside.size:
            raise DataError(
                f"the partition gives {kind} sample {outside[0]} away, the dataset has {total}"
            )
        times = np.bincount(given.astype(np.int64), minlength=total)
        if total and times.max() > 1:
            raise DataError(
                f"the partition gives {kind} sample {times.argmax()} away {times.max()} times"
            )
    empty = np.flatnonzero(IndexLists.of(assignment.train).sizes == 0)
    if empty.size:
        raise DataError(
            f"client {empty[0]} has 0 samples; lower num_clients or choose another partition"
        )
