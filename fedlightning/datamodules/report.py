"""What a partition looks like: a few lines for people, and files for programs."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from fedlightning.datamodules.divided import Divided
from fedlightning.datamodules.partition_file import write_partition_file, write_text
from fedlightning.datamodules.splits import ClientSplits

__all__ = ["partition_csv", "save_partition", "summarize", "write_partition"]


def save_partition(path: str | os.PathLike[str], data: Divided, dataset: str) -> None:
    """Write a partition so that :class:`PartitionFile` reads it.

    Args:
        path: The file.
        data: The divided data.
        dataset: Its name, for people.

    Raises:
        EnvironmentFailure: The file cannot be written.
    """
    about = {
        "dataset": dataset,
        "partition": repr(data.partition),
        "seed": data.seed,
        "digest": data.splits.digest(),
    }
    write_partition_file(path, data.assignment, len(data.train), len(data.test), about)


def write_partition(folder: str | os.PathLike[str], data: Divided, dataset: str) -> None:
    """Write ``partition.csv`` and ``partition.json`` into an existing folder.

    Raises:
        EnvironmentFailure: A file cannot be written.
    """
    write_text(Path(folder) / "partition.csv", partition_csv(data.splits, data.table("train")))
    save_partition(Path(folder) / "partition.json", data, dataset)


def summarize(splits: ClientSplits, table: np.ndarray, rule: str) -> str:
    """Return a few readable lines about a partition.

    Args:
        splits: Every client's indices.
        table: Training examples by client and class, shape (num_clients, num_classes).
        rule: The partition and its seed, in words.

    Example:
        >>> parts = [np.array([0, 1, 2]), np.array([3])]
        >>> print(summarize(ClientSplits(parts, [parts[0][:0]] * 2, parts), np.eye(2, dtype=int), "IID"))
        2 clients, IID
        train: 4 samples, a client has min 1, median 2, max 3
        test: 4 samples, a client has min 1, median 2, max 3
        distinct classes a client: mean 1.0 of 2
        digest: 411e2fa11a09
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
