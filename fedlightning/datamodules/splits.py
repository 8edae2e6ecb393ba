"""Every client's training, validation and test indices."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedlightning.datamodules.tasks import SPLITS, Split, check_split
from fedlightning.errors import ConfigError

__all__ = ["ClientSplits"]


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

    train: list[np.ndarray]
    val: list[np.ndarray]
    test: list[np.ndarray]

    def parts(self, split: Split) -> list[np.ndarray]:
        """Return the index arrays of one split, by client id.

        Raises:
            ConfigError: There is no such split.
        """
        check_split(split)
        parts: list[np.ndarray] = getattr(self, split)
        return parts

    def of(self, split: Split, client: int) -> np.ndarray:
        """Return one client's indices.

        Raises:
            ConfigError: There is no such split or no such client.
        """
        parts = self.parts(split)
        if not 0 <= client < len(parts):
            raise ConfigError(f"client must be in [0, {len(parts)}), got {client}")
        return parts[client]

    def owner(self, split: Split, index: int) -> int:
        """Return the client that holds the example ``index`` of the split's pool."""
        return next(client for client, part in enumerate(self.parts(split)) if index in part)

    def sizes(self, split: Split) -> np.ndarray:
        """Return every client's number of examples, int64, shape (num_clients,)."""
        return np.array([len(part) for part in self.parts(split)], np.int64)

    def table(self, split: Split, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Return how many examples of each class each client has, shape (num_clients, num_classes).

        Args:
            split: Which part of the clients' data.
            labels: Class of each example of the pool that the split indexes.
            num_classes: Number of classes.
        """
        sizes = self.sizes(split)
        cells = np.repeat(np.arange(len(sizes)), sizes) * num_classes
        cells += labels[np.concatenate(self.parts(split))]
        counts = np.bincount(cells, minlength=len(sizes) * num_classes)
        return counts.reshape(len(sizes), num_classes)

    def digest(self) -> str:
        """Return the SHA-256 of all index lists, in hexadecimal: equal if and only if they are."""
        content = hashlib.sha256()
        for split in SPLITS:
            content.update(self.sizes(split).astype("<i8").tobytes())
            content.update(np.concatenate(self.parts(split)).astype("<i8").tobytes())
        return content.hexdigest()
