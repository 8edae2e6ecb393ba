"""The partition that the data themselves have: every example says whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.core.validation import check_integer
from fedlightning.datamodules.columns import as_names, missing_rows
from fedlightning.datamodules.examples import Examples
from fedlightning.datamodules.partitions.base import Assignment, Partition, by_owner
from fedlightning.errors import DataError

__all__ = ["NaturalIds"]


class NaturalIds(Partition):
    """Every client has the examples that bear its name; ids follow the sorted names.

    Args:
        ids: Column with the owner of each training example, or the owners themselves.
        test_ids: Likewise for the test examples; None means the same column.
        min_samples: Clients with fewer training examples are left out.

    Raises:
        ConfigError: ``min_samples`` is not an integer >= 1.

    Example:
        >>> owners = NaturalIds(["mayo", "charite", "mayo"], test_ids=["mayo"])
        >>> owners.names
        ('charite', 'mayo')
        >>> parts = owners.assign(np.zeros(3), np.zeros(1), 2, 0, np.random.default_rng(0))
        >>> [part.tolist() for part in parts.train], [part.tolist() for part in parts.test]
        ([[1], [0, 2]], [[], [0]])
    """

    needs_labels = False

    def __init__(
        self,
        ids: str | Sequence[Any] | np.ndarray,
        test_ids: Sequence[Any] | np.ndarray | None = None,
        min_samples: int = 1,
    ) -> None:
        self.ids = ids
        self.test_ids = test_ids
        self.min_samples = check_integer("min_samples", min_samples, at_least=1)

    def __repr__(self) -> str:
        key = self.ids if isinstance(self.ids, str) else f"{len(self.ids)} ids"
        return f"NaturalIds({key!r}, min_samples={self.min_samples})"

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names, in the order of their ids; of owners that are given, or bound."""
        found, _, counts = _owners(self.ids)
        kept = [name for name, n in zip(found, counts, strict=True) if n >= self.min_samples]
        if not kept:
            raise DataError(
                f"no client has min_samples={self.min_samples} training examples: the largest of "
                f"{len(found)} has {max(counts, default=0)}; lower min_samples"
            )
        return tuple(kept)

    def bound(self, train: Examples, test: Examples) -> NaturalIds:
        """Return the partition with the owners of these pools' examples."""
        if not isinstance(self.ids, str):
            return self
        of_test = test.column(self.ids) if len(test) and self.test_ids is None else self.test_ids
        return NaturalIds(train.column(self.ids), of_test, self.min_samples)

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Give every example to its owner; see :meth:`Partition.assign`."""
        ids = {name: client for client, name in enumerate(self.names)}
        train = _ids("training", self.ids, ids, len(train_labels))
        given = [] if self.test_ids is None else self.test_ids
        test = _ids("test", given, ids, len(test_labels))
        if (test < 0).any():
            rank_zero_warn(
                f"{(test < 0).sum()} test examples belong to nobody who trains, and are left out"
            )
        return Assignment(by_owner(train, num_clients), by_owner(test, num_clients))


def _owners(ids: Any) -> tuple[list[str], np.ndarray, list[int]]:
    """Return the distinct owners in their order, the place of each example's, and their counts."""
    owners = np.asarray(ids)
    if owners.dtype.kind in "fO":
        missing = missing_rows(owners)
        if missing.size:
            raise DataError(f"example {missing[0]} has no owner; fill it in or drop the example")
    if owners.dtype.kind == "O":
        owners = as_names(owners)
    if owners.dtype.kind == "U" and (blank := np.flatnonzero(np.char.strip(owners) == "")).size:
        raise DataError(f"example {blank[0]} has no owner; fill it in or drop the example")
    found, places, counts = np.unique(owners, return_inverse=True, return_counts=True)
    return as_names(found).tolist(), places.ravel(), counts.tolist()


def _ids(what: str, owners: Any, ids: Mapping[str, int], count: int) -> np.ndarray:
    """Return each example's client id, -1 for an owner that is not among the clients."""
    names, places, _ = _owners(owners)
    if len(places) != count:
        raise DataError(f"{len(places)} owners for {count} {what} examples")
    known = np.array([ids.get(name, -1) for name in names], np.int64)
    return known[places] if len(names) else np.empty(0, np.int64)
