"""What a partition looks like: a few lines for people, and files for programs."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from fedlightning.datamodules.divided import Divided
from fedlightning.datamodules.partition_file import write_partition_file
from fedlightning.datamodules.splits import ClientSplits
from fedlightning.datamodules.tasks import Split
from fedlightning.reporting.files import write_atomically

__all__ = ["PartitionReports", "partition_csv", "summarize"]


class PartitionReports:
    """What a data module can say and write about its partition, once the data are divided."""

    @property
    def divided(self) -> Divided:
        """The divided data."""
        raise NotImplementedError

    def partition_digest(self) -> str:
        """Return the SHA-256 of all index lists of the three splits, in hexadecimal."""
        return self.divided.splits.digest()

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


def summarize(splits: ClientSplits, table: np.ndarray, rule: str) -> str:
    """Return a few readable lines about a partition.

    Args:
        splits: Every client's indices.
        table: Training examples by client and class, shape (num_clients, num_classes).
        rule: The partition and its seed, in words.

    Example:
        >>> parts = [np.array([0, 1, 2]), np.array([3])]
        >>> splits = ClientSplits(train=parts, val=[parts[0][:0]] * 2, test=parts)
        >>> print(summarize(splits, np.array([[3, 0], [0, 1]]), "IID()"))
        2 clients, IID()
        train: 4 samples, a client has min 1, median 2, max 3
        test: 4 samples, a client has min 1, median 2, max 3
        distinct classes a client: mean 1.0 of 2
        digest: 0b445f5bb415
    """
    lines = [f"{len(splits.train)} clients, {rule}"]
    for split in ("train", "val", "test"):
        sizes = splits.sizes(split)
        if sizes.any():
            lines.append(
                f"{split}: {sizes.sum()} samples, a client has min {sizes.min()}, "
                f"median {np.median(sizes):g}, max {sizes.max()}"
            )
    if table.shape[1]:
        distinct = (table > 0).sum(axis=1).mean()
        lines.append(f"distinct classes a client: mean {distinct:.1f} of {table.shape[1]}")
    lines.append(f"digest: {splits.digest()[:12]}")
    return "\n".join(lines)


def partition_csv(splits: ClientSplits, table: np.ndarray) -> str:
    """Return the text of ``partition.csv``: one row a client.

    Args:
        splits: Every client's indices.
        table: Training examples by client and class, shape (num_clients, num_classes).

    Example:
        >>> parts = [np.array([0, 1, 2])]
        >>> print(partition_csv(ClientSplits(parts, [parts[0][:0]], parts), np.array([[2, 1]])))
        client_id,num_train,num_val,num_test,class_0,class_1
        0,3,0,3,2,1
        <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = [f"class_{label}" for label in range(table.shape[1])]
    writer.writerow(["client_id", "num_train", "num_val", "num_test", *classes])
    sizes = np.stack([splits.sizes("train"), splits.sizes("val"), splits.sizes("test")], axis=1)
    for client, row in enumerate(np.concatenate([sizes, table], axis=1).tolist()):
        writer.writerow([client, *row])
    return text.getvalue()
