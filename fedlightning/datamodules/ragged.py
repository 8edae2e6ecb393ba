"""Index lists of many clients in two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

__all__ = ["Ragged"]


class Ragged(Sequence[np.ndarray]):
    """The index lists of all clients, one after the other in one array.

    A million lists as Python objects would cost a hundred bytes each before they hold anything.
    Indices are stored in 32 bits where they fit, and come out in 64.

    Args:
        flat: All lists, client after client.
        sizes: Length of each client's list; they sum to ``len(flat)``.

    Attributes:
        flat: All lists, as stored.
        edges: Where each client's list begins in ``flat``, and at last where it ends, shape
            (num_clients + 1,).

    Example:
        >>> lists = Ragged(np.array([4, 1, 7]), sizes=np.array([2, 0, 1]))
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
    def of(cls, parts: Sequence[np.ndarray]) -> Ragged:
        """Return the lists ``parts``, whatever sequence of arrays they are.

        Example:
            >>> Ragged.of([np.array([2, 0]), np.array([1])]).flat.tolist()
            [2, 0, 1]
        """
        if isinstance(parts, Ragged):
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
    """Return integers in 32 bits if all of them fit; anything else as it is."""
    if values.dtype.kind not in "iu" or values.dtype == np.int32:
        return values
    limits = np.iinfo(np.int32)
    fits = not values.size or (values.min() >= limits.min and values.max() <= limits.max)
    return values.astype(np.int32 if fits else np.int64)
