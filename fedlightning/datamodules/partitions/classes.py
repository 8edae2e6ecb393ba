"""The class partition: every client has a fixed number of distinct classes."""

from __future__ import annotations

import numpy as np

from fedlightning.core.validation import check_integer
from fedlightning.datamodules.partitions.base import Assignment, Partition, by_owner
from fedlightning.errors import DataError

__all__ = ["Classes"]


class Classes(Partition):
    """Every client gets examples of exactly ``per_client`` distinct classes.

    The numbers of clients that hold each class differ by at most one, so every class is used if
    ``per_client * num_clients`` is at least the number of classes (the examples of unused classes
    belong to no client). A class's examples are divided evenly over the clients that hold it, and
    the test examples likewise over the same clients. A client's indices are in ascending order.

    Args:
        per_client: Number of distinct classes per client, at most the number of classes.

    Raises:
        ConfigError: ``per_client`` is not an integer >= 1.

    Example:
        >>> labels = np.repeat(np.arange(4), 6)
        >>> rng = np.random.default_rng(0)
        >>> parts = Classes(per_client=2).assign(labels, labels[:0], 4, num_classes=4, rng=rng)
        >>> [(len(part), len(np.unique(labels[part]))) for part in parts.train]
        [(6, 2), (6, 2), (6, 2), (6, 2)]
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
        """Choose each client's classes, then divide; see :meth:`Partition.assign`."""
        present = np.unique(train_labels)
        if self.per_client > len(present):
            raise DataError(
                f"per_client={self.per_client} > {len(present)} classes in the training data; "
                f"per_client can be {len(present)} at most"
            )
        holders = _holders(len(present), self.per_client, num_clients, rng)
        train_owner = np.full(len(train_labels), -1)
        test_owner = np.full(len(test_labels), -1)
        for label, clients in zip(present, holders, strict=True):
            _divide(np.flatnonzero(test_labels == label), clients, test_owner, rng)
            examples = np.flatnonzero(train_labels == label)
            if len(examples) < len(clients):
                raise DataError(
                    f"class {label} has {len(examples)} samples for {len(clients)} clients; "
                    f"lower num_clients or per_client"
                )
            _divide(examples, clients, train_owner, rng)
        return Assignment(
            train=by_owner(train_owner, num_clients), test=by_owner(test_owner, num_clients)
        )


def _holders(
    num_classes: int, per_client: int, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the clients that hold each class: each takes the least used ones, ties at random."""
    used = np.zeros(num_classes, np.int64)
    held = np.zeros((num_clients, num_classes), bool)
    for client in range(num_clients):
        taken = np.lexsort((rng.random(num_classes), used))[:per_client]
        used[taken] += 1
        held[client, taken] = True
    return [np.flatnonzero(column) for column in held.T]


def _divide(
    examples: np.ndarray, clients: np.ndarray, owner: np.ndarray, rng: np.random.Generator
) -> None:
    """Write the owners of ``examples`` into ``owner``: a random, even division over ``clients``."""
    if len(clients):
        owner[rng.permutation(examples)] = clients[np.arange(len(examples)) % len(clients)]
