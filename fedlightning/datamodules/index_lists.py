"""Every client's training, validation and test indices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from fedlightning.core.batches import SPLITS, Split, check_split
from fedlightning.errors import ConfigError

__all__ = ["ClientSplits", "IndexLists"]

_HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class ClientSplits:
    """The indices of every client.

    Attributes:
        train: Per client, int64 indices into the pool of training examples.
        val: Per client, indices into the same pool, none of them in ``train``.
        test: Per client, indices into the pool of test examples.

    Example:
        >>> train, val, test = np.array([0, 2]), np.array([1]), np.array([0])
        >>> splits = ClientSplits([train], [val], [test])
        >>> splits.of("val", 0).tolist(), splits.sizes("train").tolist()
        ([1], [2])
        >>> splits.digest()[:12]
        '0d64ba255b11'
    """

    train: Sequence[np.ndarray]
    val: Sequence[np.ndarray]
    test: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        for split in SPLITS:
            object.__setattr__(self, split, IndexLists.of(getattr(self, split)))

    def parts(self, split: Split) -> IndexLists:
        """Return the index lists of one split, by client id.

        Raises:
            ConfigError: The split does not exist.
        """
        check_split(split)
        parts: IndexLists = getattr(self, split)
        return parts

    def of(self, split: Split, client: int) -> np.ndarray:
        """Return one client's indices.

        Raises:
            ConfigError: The split or the client does not exist.
        """
        return self._checked(split, client)[client]

    def size(self, split: Split, client: int) -> int:
        """Return the number of one client's examples.

        Raises:
            ConfigError: The split or the client does not exist.
        """
        return self._checked(split, client).size(client)

    def owner(self, split: Split, index: int) -> int:
        """Return the client that holds the example ``index`` of the split's pool."""
        return self.parts(split).owner(index)

    def sizes(self, split: Split) -> np.ndarray:
        """Return the number of every client's examples, int64, shape (num_clients,)."""
        return self.parts(split).sizes

    def table(
        self, split: Split, labels: np.ndarray, num_classes: int, clients: int | None = None
    ) -> np.ndarray:
        """Return the examples per client and class, shape (clients, num_classes).

        Args:
            split: Which part of the clients' data.
            labels: Class of each example in the split's pool; labels outside the classes are not
                counted.
            num_classes: Number of classes.
            clients: How many clients, from client 0 on; None means all.
        """
        parts = self.parts(split)
        sizes = parts.sizes[:clients]
        cells = np.repeat(np.arange(len(sizes)), sizes) * num_classes
        classes = labels[parts.flat[: sizes.sum()]]
        inside = (classes >= 0) & (classes < num_classes)
        cells = cells[inside] + classes[inside]
        counts = np.bincount(cells, minlength=len(sizes) * num_classes)
        return counts.reshape(len(sizes), num_classes)

    def digest(self) -> str:
        """Return the SHA-256 of all index lists, in hexadecimal."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256()
        for split in SPLITS:
            for values in (self.sizes(split), self.parts(split).flat):
                for start in range(0, len(values), _HASHED_AT_ONCE):
                    piece = values[start : start + _HASHED_AT_ONCE]
                    content.update(np.ascontiguousarray(piece, "<i8").data)
        return content.hexdigest()

    def _checked(self, split: Split, client: int) -> IndexLists:
        parts = self.parts(split)
        if not 0 <= client < len(parts):
            raise ConfigError(f"client must be in [0, {len(parts)}), got {client}")
        return parts


class IndexLists(Sequence[np.ndarray]):
    """The index lists of all clients, one after the other in one array.

    A million lists as Python objects would cost a hundred bytes each even when empty. Indices are
    stored in 32 bits if they fit, and returned in 64.

    Args:
        flat: All lists, client after client.
        sizes: Length of each client's list; they sum to ``len(flat)``.

    Attributes:
        flat: All lists, as stored.
        edges: Where each client's list begins in ``flat``, and finally where the last one ends,
            shape (num_clients + 1,).

    Example:
        >>> lists = IndexLists(np.array([4, 1, 7]), sizes=np.array([2, 0, 1]))
        >>> len(lists), [part.tolist() for part in lists]
        (3, [[4, 1], [], [7]])
        >>> lists.sizes.tolist(), lists.owner(7)
        ([2, 0, 1], 2)
    """

    __slots__ = ("edges", "flat")

    def __init__(self, flat: np.ndarray, sizes: np.ndarray) -> None:
        self.flat = _compact(flat)
        edges = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=edges[1:])
        assert edges[-1] == len(flat), "the sizes do not sum to the number of indices"
        self.edges = _compact(edges)

    @classmethod
    def of(cls, parts: Sequence[np.ndarray]) -> IndexLists:
        """Return any sequence of arrays as index lists.

        Example:
            >>> IndexLists.of([np.array([2, 0]), np.array([1])]).flat.tolist()
            [2, 0, 1]
        """
        if isinstance(parts, IndexLists):
            return parts
        flat = np.concatenate([np.empty(0, np.int64), *filter(len, parts)])
        return cls(flat, np.fromiter(map(len, parts), np.int64, len(parts)))

    @property
    def sizes(self) -> np.ndarray:
        """The length of each client's list, int64, shape (num_clients,)."""
        return np.diff(self.edges).astype(np.int64)

    def size(self, client: int) -> int:
        """Return the length of one client's list."""
        return int(self.edges[client + 1] - self.edges[client])

    def owner(self, index: int) -> int:
        """Return the client whose list holds ``index``."""
        [position] = np.flatnonzero(self.flat == index)[:1]
        return int(np.searchsorted(self.edges, position, side="right")) - 1

    def __len__(self) -> int:
        return len(self.edges) - 1

    @overload
    def __getitem__(self, client: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, client: slice) -> list[np.ndarray]: ...

    def __getitem__(self, client: int | slice) -> Any:
        if isinstance(client, slice):
            return [self[index] for index in range(len(self))[client]]
        client = range(len(self))[client]
        part = self.flat[self.edges[client] : self.edges[client + 1]]
        return part.astype(np.int64) if part.dtype == np.int32 else part


def _compact(values: np.ndarray) -> np.ndarray:
    """Return integers in 32 bits if all of them fit; anything else unchanged."""
    if values.dtype.kind not in "iu" or values.dtype == np.int32:
        return values
    limits = np.iinfo(np.int32)
    fits = not values.size or (values.min() >= limits.min and values.max() <= limits.max)
    return values.astype(np.int32 if fits else np.int64)
