"""Descriptions of partitions and datasets: a summary, a table, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fedlightning.core.batches import SPLITS
from fedlightning.core.client_names import NAME_COLUMN
from fedlightning.datamodules.examples import Examples, TensorExamples, sample_of
from fedlightning.datamodules.index_lists import ClientSplits
from fedlightning.storage.csv_files import csv_text

__all__ = ["content_digest", "fingerprint", "partition_csv", "summarize"]


def summarize(splits: ClientSplits, table: np.ndarray, rule: str) -> str:
    """Return a few readable lines about a partition.

    Args:
        splits: Every client's indices.
        table: Training examples per client and class, shape (num_clients, num_classes).
        rule: The partition and its seed, in words.

    Example:
        >>> parts = [np.array([0, 1, 2]), np.array([3])]
        >>> splits = ClientSplits(train=parts, val=[parts[0][:0]] * 2, test=parts)
        >>> print(summarize(splits, np.array([[3, 0], [0, 1]]), "IID()"))
        2 clients, IID()
        train: 4 samples, per client min 1, median 2, max 3
        test: 4 samples, per client min 1, median 2, max 3
        distinct classes per client: mean 1.0 of 2
        digest: 0b445f5bb415
    """
    lines = [f"{len(splits.train)} clients, {rule}"]
    for split in ("train", "val", "test"):
        sizes = splits.sizes(split)
        if sizes.any():
            lines.append(
                f"{split}: {sizes.sum()} samples, per client min {sizes.min()}, "
                f"median {np.median(sizes):g}, max {sizes.max()}"
            )
    if table.shape[1]:
        distinct = (table > 0).sum(axis=1).mean()
        lines.append(f"distinct classes per client: mean {distinct:.1f} of {table.shape[1]}")
    lines.append(f"digest: {splits.digest()[:12]}")
    return "\n".join(lines)


def partition_csv(
    splits: ClientSplits, table: np.ndarray, names: Sequence[str] | None = None
) -> str:
    """Return the text of ``partition.csv``: one row per client.

    Args:
        splits: Every client's indices.
        table: Training examples per client and class, shape (clients, num_classes); the text has
            one row for each of its rows.
        names: The clients' names, for a last column.

    Example:
        >>> parts = [np.array([0, 1, 2])]
        >>> print(partition_csv(ClientSplits(parts, [parts[0][:0]], parts), np.array([[2, 1]])))
        client_id,num_train,num_val,num_test,class_0,class_1
        0,3,0,3,2,1
        <BLANKLINE>
    """
    classes = [f"class_{label}" for label in range(table.shape[1])]
    sizes = np.stack([splits.sizes(split)[: len(table)] for split in SPLITS], axis=1)
    rows = enumerate(np.concatenate([sizes, table], axis=1).tolist())
    header = ["client_id", "num_train", "num_val", "num_test", *classes]
    if names is None:
        return csv_text([header, *([client, *row] for client, row in rows)])
    named = ([client, *row, names[client]] for client, row in rows)
    return csv_text([[*header, NAME_COLUMN], *named])


def fingerprint(*pools: Examples) -> str:
    """Return a digest of the sizes, dtypes and labels of pools, and of a sample of their inputs.

    It covers all labels and, of inputs in memory, up to 4 MiB of evenly spaced examples. Datasets
    that differ only elsewhere have the same fingerprint: it tells datasets apart, but does not
    prove them equal.

    Args:
        pools: Training and test examples.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> one, other = (TensorExamples(np.full((4, 2), x), [0, 1, 1, 0]) for x in (0.0, 1.0))
        >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
        (True, False)
    """
    content = hashlib.sha256()
    for pool in pools:
        content.update(f"{type(pool).__name__} {len(pool)} ".encode())
        if pool.labels is not None:
            labels = np.ascontiguousarray(pool.labels)
            content.update(f"{labels.dtype} {labels.shape} ".encode())
            content.update(labels.tobytes())
        if isinstance(pool, TensorExamples):
            inputs = pool.inputs
            content.update(f"{inputs.dtype} {tuple(inputs.shape)} ".encode())
            content.update(sample_of(inputs))
    return content.hexdigest()[:16]


def content_digest(*pools: Examples) -> str:
    """Return a digest of what pools know of their inputs beside :func:`fingerprint`, or "".

    Example:
        >>> from fedlightning.datamodules.structured import StructuredExamples
        >>> content_digest(StructuredExamples({"a": [1.0]})) == content_digest(
        ...     StructuredExamples({"a": [2.0]}))
        False
        >>> content_digest(TensorExamples([1.0]))
        ''
    """
    contents = [pool.content() for pool in dict.fromkeys(pools)]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16] if any(contents) else ""
