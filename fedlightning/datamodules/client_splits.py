"""How a client's own examples are divided into those to train on and those to test on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedlightning.core.validation import Setting, check_instance, check_number
from fedlightning.datamodules.columns import as_names, missing_rows
from fedlightning.datamodules.examples import Examples, TensorExamples
from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition
from fedlightning.datamodules.times import sortable_times
from fedlightning.errors import DataError

__all__ = [
    "ClientSplit",
    "GroupSplit",
    "RandomSplit",
    "SplitWithin",
    "TimeSplit",
    "split_of",
    "text_columns",
]

Key = str | Sequence[Any] | np.ndarray
"""The name of a column, or one value per example."""


def text_columns(client: str | None, split: Any) -> dict[str, bool]:
    """Return the columns of a file that are read as they are written.

    These are those with names of clients and groups, and with times that have a format.

    Args:
        client: The column with the owners.
        split: The rule that divides a client's examples, if any.

    Returns:
        Whether whole numbers become numbers, by column.

    Example:
        >>> text_columns("site", TimeSplit("day", format="%d%m%Y"))
        {'site': True, 'day': False}
    """
    columns = {} if client is None else {client: True}
    key = getattr(split, "key", None)
    if isinstance(key, str) and isinstance(split, GroupSplit):
        columns[key] = True
    if isinstance(key, str) and isinstance(split, TimeSplit) and split.format is not None:
        columns[key] = False
    return columns


class ClientSplit(Setting, ABC):
    """A rule that takes a share of every client's examples for a second purpose.

    The client's test data are taken first; validation data (``val_fraction``) are then taken of the
    rest by the same rule. A client keeps at least one training example.

    Attributes:
        test: Share of a client's examples to test on, in (0, 1).
    """

    test: float

    def values(self, pool: Examples) -> np.ndarray:
        """Return what the rule looks at, one value per example of the pool."""
        return np.zeros(len(pool))

    @abstractmethod
    def taken(self, values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
        """Return which of one client's examples are taken, bool, shape (n,).

        Args:
            values: What the rule looks at, one value per example.
            share: The share to take, in (0, 1).
            rng: The only source of randomness.
        """

    def divide(
        self,
        lists: Sequence[np.ndarray],
        values: np.ndarray,
        share: float,
        rng: np.random.Generator,
    ) -> tuple[IndexLists, IndexLists]:
        """Return what is left of every client's indices, and what is taken: nothing of no share."""
        left, taken = [], []
        for part in lists:
            mask = self.taken(values[part], share, rng) if share else np.zeros(len(part), bool)
            if mask.all() and len(mask):
                mask[0] = False
            left.append(part[~mask])
            taken.append(part[mask])
        return IndexLists.of(left), IndexLists.of(taken)


class RandomSplit(ClientSplit):
    """A random share of each client's examples is its test data.

    Example:
        >>> RandomSplit(0.25).taken(np.zeros(8), 0.25, np.random.default_rng(0)).sum()
        np.int64(2)
    """

    def __init__(self, test: float = 0.2) -> None:
        self.test = float(check_number("test", test, above=0, below=1))

    def taken(self, values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
        """Choose at random."""
        mask = np.zeros(len(values), bool)
        mask[rng.permutation(len(values))[: round(share * len(values))]] = True
        return mask


class TimeSplit(ClientSplit):
    """Each client's latest examples are its test data: nobody trains on the future.

    Args:
        key: Column with the time, or the times themselves: numbers, dates, text in ISO 8601, or
            text of one shape that sorts. What may begin with a day or a month is refused without
            ``format``.
        test: Share of a client's examples to test on, in (0, 1).
        format: How times that are text are written, in the codes of ``datetime.strptime``:
            ``%d.%m.%Y`` for 31.12.2025, ``%m/%d/%Y %H:%M`` for 12/31/2025 08:00.

    Raises:
        DataError: When the data are divided: it is not known which of two times is the earlier.

    Example:
        >>> split = TimeSplit("year", test=0.5)
        >>> split.taken(np.array([2021, 2019, 2024, 2020]), 0.5, np.random.default_rng(0)).tolist()
        [True, False, True, False]
    """

    def __init__(
        self,
        key: Key,
        test: float = 0.2,
        format: str | None = None,  # noqa: A002  # as strptime calls it
    ) -> None:
        self.key = key
        self.test = float(check_number("test", test, above=0, below=1))
        self.format = format

    def values(self, pool: Examples) -> np.ndarray:
        """Return the times."""
        try:
            return sortable_times(values_of(self.key, pool), self.format)
        except DataError as error:
            named = f"column {self.key!r}" if isinstance(self.key, str) else "the times"
            raise DataError(f"TimeSplit, {named}: {error}") from None

    def taken(self, values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
        """Choose the latest; of equal times the later in the client's order."""
        mask = np.zeros(len(values), bool)
        order = np.argsort(values, kind="stable")
        # The earliest is never taken: it is what a client keeps to train on.
        mask[order[max(len(values) - round(share * len(values)), 1) :]] = True
        return mask


class GroupSplit(ClientSplit):
    """Whole groups of each client's examples are its test data, such as all visits of a patient.

    Random groups are taken as long as they do not exceed the share; at least one, where a client
    has two or more.

    Args:
        key: Column with the group, or the groups themselves.
        test: Share of a client's examples to test on, in (0, 1).

    Example:
        >>> split = GroupSplit("patient", test=0.5)
        >>> mask = split.taken(np.array([7, 7, 8, 8]), 0.5, np.random.default_rng(0))
        >>> mask.tolist() in ([True, True, False, False], [False, False, True, True])
        True
    """

    def __init__(self, key: Key, test: float = 0.2) -> None:
        self.key = key
        self.test = float(check_number("test", test, above=0, below=1))

    def values(self, pool: Examples) -> np.ndarray:
        """Return the groups."""
        groups = values_of(self.key, pool)
        return as_names(groups) if groups.dtype.kind == "O" else groups

    def taken(self, values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
        """Choose groups."""
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            return np.zeros(len(values), bool)
        room, chosen = share * len(values), []
        order = rng.permutation(len(sizes))
        for one in order:
            if sizes[one] <= room:
                chosen.append(one)
                room -= sizes[one]
        mask: np.ndarray = np.isin(group.ravel(), chosen or [order[np.argmin(sizes[order])]])
        return mask


class SplitWithin(Partition):
    """Another partition of one pool, each client's share of it divided by a rule.

    Args:
        partition: Divides the pool over the clients.
        split: Divides what a client has.
    """

    def __init__(self, partition: Partition, split: ClientSplit) -> None:
        self.partition = partition
        self.split = split

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether the other partition does."""
        return self.partition.needs_labels

    def bound(self, train: Examples, test: Examples) -> Partition:
        """Return the rule for these pools."""
        none = TensorExamples(np.empty((0, 1)))
        bound = SplitWithin(self.partition.bound(train, none), self.split)
        bound._values = self.split.values(train)
        return bound

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Divide the training pool; see :meth:`Partition.assign`."""
        whole = self.partition.assign(train_labels, train_labels[:0], num_clients, num_classes, rng)
        train, test = self.split.divide(whole.train, self._values, self.split.test, rng)
        return Assignment(train=train, test=test)

    def __repr__(self) -> str:
        return f"{self.partition!r}, {self.split!r}"

    _values: np.ndarray


def split_of(test: Any, split: Any) -> ClientSplit | None:
    """Return the rule that makes test data where there are none: the given one, or at random.

    Raises:
        ConfigError: ``split`` is not a rule.
    """
    if split is not None:
        check_instance("split", split, ClientSplit)
    return RandomSplit() if split is None and test is None else split


def values_of(key: Key, pool: Examples) -> np.ndarray:
    """Return one value per example: a column of the pool, or the values that are given.

    Raises:
        DataError: There is no such column, their number differs, or one is missing.
    """
    values = pool.column(key) if isinstance(key, str) else np.asarray(key)
    if len(values) != len(pool):
        raise DataError(f"{len(values)} values for {len(pool)} examples")
    missing = missing_rows(values)
    if missing.size:
        name = f"column {key!r}" if isinstance(key, str) else "the values"
        raise DataError(f"{name}: example {missing[0]} has none; fill it in or drop the example")
    return values
