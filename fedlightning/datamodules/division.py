"""From pools of examples to clients: what every partition, a user's too, goes through."""

from __future__ import annotations

import numpy as np

from fedlightning.datamodules.examples import Examples, has_classes
from fedlightning.datamodules.partitions.base import Assignment, Partition, check_assignment
from fedlightning.datamodules.ragged import Ragged
from fedlightning.datamodules.index_lists import ClientSplits
from fedlightning.errors import ConfigError, DataError

__all__ = ["count_classes", "divide", "hold_out"]


def count_classes(train: Examples, test: Examples) -> int:
    """Return the highest label plus one, or 0 where the data have no classes.

    Example:
        >>> from fedlightning.datamodules.examples import TensorExamples
        >>> count_classes(TensorExamples(np.zeros(3), [0, 4, 1]), TensorExamples(np.zeros(1), [2]))
        5
    """
    pools = [pool.labels for pool in (train, test) if len(pool)]
    if not pools or not all(has_classes(labels) for labels in pools):
        return 0
    return max(int(labels.max()) + 1 for labels in pools if labels is not None)


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
        num_classes: Number of classes; 0 where the data have none.
        rng: The only source of randomness.

    Raises:
        ConfigError: The partition needs labels, and the data have no classes.
        DataError: The data cannot be divided so.

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
            f"partition={partition!r} needs one integer label an example, which the data have not; "
            f"use IID()"
        )
    assignment = partition.assign(
        _classes(train, num_classes), _classes(test, num_classes), num_clients, num_classes, rng
    )
    check_assignment(assignment, len(train), len(test), num_clients)
    return Assignment(train=Ragged.of(assignment.train), test=Ragged.of(assignment.test))


def hold_out(assignment: Assignment, fraction: float, rng: np.random.Generator) -> ClientSplits:
    """Take a random share of each client's training examples for validation.

    The rest and the share both keep the stored order. A client keeps at least one training example,
    so a client with a single one has no validation data.

    Args:
        assignment: What the partition gave.
        fraction: Share of a client's training examples, rounded to a whole number, in [0, 1).
        rng: The only source of randomness.

    Example:
        >>> given = Assignment(train=[np.arange(10), np.array([17])], test=[np.arange(2)] * 2)
        >>> splits = hold_out(given, 0.2, np.random.default_rng(0))
        >>> splits.sizes("train").tolist(), splits.sizes("val").tolist()
        ([8, 1], [2, 0])
    """
    whole = Ragged.of(assignment.train)
    sizes = whole.sizes
    taken = np.maximum(np.minimum(np.rint(fraction * sizes).astype(np.int64), sizes - 1), 0)
    if not taken.any():
        none = Ragged(whole.flat[:0], taken)
        return ClientSplits(train=whole, val=none, test=assignment.test)
    # In a random order of each client's examples, the first ones are held out.
    client = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((rng.random(len(client)), client))
    within = np.arange(len(client)) - whole.edges[client]
    held = np.zeros(len(client), bool)
    held[order] = within < taken[client]
    return ClientSplits(
        train=Ragged(whole.flat[~held], sizes - taken),
        val=Ragged(whole.flat[held], taken),
        test=assignment.test,
    )


def _classes(pool: Examples, num_classes: int) -> np.ndarray:
    """Return the labels that a partition sees.

    A label outside the classes is moved inside: so the example gets an owner, and the check of the
    divided data, which refuses it, can say whose it is.
    """
    if pool.labels is None or not has_classes(pool.labels) or not num_classes:
        return np.zeros(len(pool), np.int64)
    inside: np.ndarray = np.clip(pool.labels, 0, num_classes - 1)
    return inside
