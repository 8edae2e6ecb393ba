"""Who holds which example: what a data module can say and write about its partition."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedlightning.datamodules.divided import Divided
from fedlightning.datamodules.fingerprint import fingerprint
from fedlightning.datamodules.partition_file import write_partition_file
from fedlightning.datamodules.report import partition_csv, summarize
from fedlightning.datamodules.tasks import Split
from fedlightning.errors import ConfigError, DataError
from fedlightning.reporting.files import write_atomically

__all__ = ["Holdings"]


class Holdings:
    """The questions about a data module's examples that need no batch.

    Raises:
        ConfigError: From every method: ``setup`` has not been called, or there is no such client or
            split.
    """

    _divided: Divided | None = None

    @property
    def divided(self) -> Divided:
        """The loaded and divided data.

        Raises:
            ConfigError: ``setup`` has not been called.
        """
        if self._divided is None:
            raise ConfigError(f"{type(self).__name__} holds no data yet: call its setup() first")
        return self._divided

    def num_examples(self, client: int, split: Split = "train") -> int:
        """Return how many examples a client has in a split."""
        return len(self.indices(client, split))

    def indices(self, client: int, split: Split = "train") -> np.ndarray:
        """Return a client's indices, in its stored order, int64, shape (n,).

        They count the pooled examples of all clients: the training pool for "train" and "val", the
        test pool for "test".
        """
        return self.divided.splits.of(split, client)

    def labels(self, client: int, split: Split = "train") -> np.ndarray:
        """Return a client's labels, in its stored order, shape (n, ...); classes are int64.

        Raises:
            DataError: The data have no labels.
        """
        labels = self.divided.pool(split).labels
        if labels is None:
            raise DataError(f"{type(self).__name__} has no labels")
        chosen: np.ndarray = labels[self.indices(client, split)]
        return chosen

    def predict_index(self) -> np.ndarray:
        """Return client id and test index of each prediction in order, int64, shape (n, 2)."""
        splits = self.divided.splits
        clients = np.repeat(np.arange(len(splits.test)), splits.sizes("test"))
        return np.stack([clients, np.concatenate(splits.test)], axis=1)

    def partition_digest(self) -> str:
        """Return the SHA-256 of all index lists of the three splits, in hexadecimal."""
        return self.divided.splits.digest()

    def dataset_fingerprint(self) -> str:
        """Return 16 digits that tell datasets apart: sizes, labels, a sample of the inputs."""
        return fingerprint(self.divided.train, self.divided.test)

    def partition_table(self, split: Split = "train") -> np.ndarray:
        """Return the examples by client and class, int64, shape (num_clients, num_classes)."""
        return self.divided.table(split)

    def partition_summary(self) -> str:
        """Return a few readable lines: clients, samples, classes, digest."""
        data = self.divided
        rule = f"{data.partition!r}, seed {data.seed}"
        return summarize(data.splits, self.partition_table(), rule)

    def save_partition(self, path: str | os.PathLike[str]) -> None:
        """Write the partition to a JSON file that :class:`PartitionFile` reads.

        Held-out examples are among the training examples there: the same seed and ``val_fraction``
        hold the same ones out again.

        Raises:
            EnvironmentFailure: The file cannot be written.
        """
        data = self.divided
        about = {
            "dataset": type(self).__name__,
            "partition": repr(data.partition),
            "seed": data.seed,
            "digest": self.partition_digest(),
        }
        write_partition_file(path, data.assignment, len(data.train), len(data.test), about)

    def write_partition(self, folder: str | os.PathLike[str]) -> None:
        """Write ``partition.csv``, a row a client, and ``partition.json`` into a folder.

        Raises:
            EnvironmentFailure: A file cannot be written.
        """
        table = partition_csv(self.divided.splits, self.partition_table())
        write_atomically(Path(folder) / "partition.csv", table.encode())
        self.save_partition(Path(folder) / "partition.json")

    def __str__(self) -> str:
        return f"{type(self).__name__}()" if self._divided is None else self.partition_summary()
