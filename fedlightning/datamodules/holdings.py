"""Who holds which example: what a data module can say and write about its partition."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedlightning.datamodules.pooled import Divided
from fedlightning.datamodules.fingerprint import fingerprint
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.loaders import Split
from fedlightning.errors import ConfigError, DataError

__all__ = ["Holdings"]


class Holdings:
    """The questions about a data module's examples that need no batch.

    Raises:
        ConfigError: From every method: ``setup`` has not been called, or there is no such client or
            split.
    """

    _held: ClientData | None = None

    @property
    def held(self) -> ClientData:
        """Every client's examples.

        Raises:
            ConfigError: ``setup`` has not been called.
        """
        if self._held is None:
            raise ConfigError(f"{type(self).__name__} holds no data yet: call its setup() first")
        return self._held

    @property
    def divided(self) -> Divided:
        """The pools of examples and their division.

        Raises:
            ConfigError: ``setup`` has not been called.
            DataError: The clients' examples do not lie in pools.
        """
        if not isinstance(self.held, Divided):
            raise DataError(
                f"{type(self).__name__} has no list of all examples: they are {self.held.rule}"
            )
        return self.held

    def num_examples(self, client: int, split: Split = "train") -> int:
        """Return how many examples a client has in a split."""
        return self.held.size(client, split)

    def indices(self, client: int, split: Split = "train") -> np.ndarray:
        """Return a client's indices, in its stored order, int64, shape (n,).

        They count the pooled examples of all clients: the training pool for "train" and "val", the
        test pool for "test". Where there are no pools they count the client's own.
        """
        return self.held.indices(client, split)

    def labels(self, client: int, split: Split = "train") -> np.ndarray:
        """Return a client's labels, in its stored order, shape (n, ...); classes are int64.

        Raises:
            DataError: The data have no labels.
        """
        labels = self.held.pool(client, split).labels
        if labels is None:
            raise DataError(f"{type(self).__name__} has no labels")
        chosen: np.ndarray = labels[self.indices(client, split)]
        return chosen

    def partition_digest(self) -> str:
        """Return a SHA-256 in hexadecimal; that of all index lists of the three splits."""
        return self.held.digest()

    def dataset_fingerprint(self) -> str:
        """Return 16 digits that tell datasets apart: sizes, labels, a sample of the inputs."""
        if not isinstance(self.held, Divided):
            return self.held.digest()[:16]
        return fingerprint(self.divided.train, self.divided.test)

    def partition_table(self, split: Split = "train", clients: int | None = None) -> np.ndarray:
        """Return the examples by client and class, int64, shape (clients, num_classes).

        Args:
            split: Which part of the clients' data.
            clients: How many clients, from client 0 on; None means all.
        """
        return self.held.table(split, clients)

    def partition_summary(self) -> str:
        """Return a few readable lines: clients, samples, classes, digest."""
        return self.held.summary()

    def save_partition(self, path: str | os.PathLike[str]) -> None:
        """Write the partition to a JSON file that :class:`PartitionFile` reads.

        Held-out examples are among the training examples there: the same seed and ``val_fraction``
        hold the same ones out again.

        Raises:
            EnvironmentFailure: The file cannot be written.
        """
        self.divided.save(path, type(self).__name__)

    def write_partition(self, folder: str | os.PathLike[str]) -> None:
        """Write ``partition.csv``, a row a client, and ``partition.json`` into a folder.

        Of more than 10,000 clients the former lists the first 1,000 and the latter only says who
        made the division: neither grows with the population.

        Raises:
            EnvironmentFailure: A file cannot be written.
        """
        self.held.write(Path(folder), type(self).__name__)

    def __str__(self) -> str:
        return f"{type(self).__name__}()" if self._held is None else self.partition_summary()
