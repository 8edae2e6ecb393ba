"""A partition read from a file, and the writer of such files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedlightning.datamodules.index_lists import IndexLists
from fedlightning.datamodules.partitions.base import Assignment, Partition, check_assignment
from fedlightning.errors import DataError
from fedlightning.storage.files import write_atomically

__all__ = ["PartitionFile", "write_partition_file"]

_VERSION = 1


class PartitionFile(Partition):
    """The partition listed in a JSON file.

    The file is a mapping with ``version`` (1), ``num_train`` and ``num_test`` (the sizes of the
    divided dataset), and ``train`` and ``test``: per client, the list of its indices in its stored
    order. Other keys are ignored.
    ``FederatedDataModule.save_partition`` writes such files.

    Args:
        path: The file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = f"{folder}/partition.json"
        ...     train, test = [np.array([2, 0]), np.array([1])], [np.array([0]), np.array([], int)]
        ...     write_partition_file(path, Assignment(train, test), num_train=3, num_test=1)
        ...     rng = np.random.default_rng(0)
        ...     same = PartitionFile(path).assign(np.zeros(3), np.zeros(1), 2, 0, rng)
        >>> [part.tolist() for part in same.train]
        [[2, 0], [1]]
    """

    needs_labels = False

    def __init__(self, path: str) -> None:
        self.path = str(path)

    def assign(
        self,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        num_clients: int,
        num_classes: int,
        rng: np.random.Generator,
    ) -> Assignment:
        """Read the lists and check them against the data; see :meth:`Partition.assign`."""
        content = _read(self.path)
        for kind, labels in (("train", train_labels), ("test", test_labels)):
            covered = content.get(f"num_{kind}")
            if covered != len(labels):
                raise DataError(
                    f"{self.path}: partition covers {covered} samples, dataset has {len(labels)} "
                    f"(num_{kind})"
                )
        assignment = Assignment(
            train=_index_lists(self.path, content, "train"),
            test=_index_lists(self.path, content, "test"),
        )
        try:
            check_assignment(assignment, len(train_labels), len(test_labels), num_clients)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        return assignment


def write_partition_file(
    path: str | os.PathLike[str],
    assignment: Assignment,
    num_train: int,
    num_test: int,
    extra: Mapping[str, Any] | None = None,
    listed: bool = True,
) -> None:
    """Write an assignment to a file for :class:`PartitionFile`.

    Args:
        path: The file; an existing one is replaced, missing folders are made.
        assignment: The lists.
        num_train: Number of training examples of the dataset.
        num_test: Number of test examples of the dataset.
        extra: More keys for information; the reader ignores them.
        listed: Whether to write the lists. Without them the file is for information only.

    Raises:
        EnvironmentFailure: The file cannot be written.
    """
    content = {
        "version": _VERSION,
        "num_train": num_train,
        "num_test": num_test,
        **(extra or {}),
    }
    if listed:
        content["train"] = [part.tolist() for part in assignment.train]
        content["test"] = [part.tolist() for part in assignment.test]
    else:
        content["listed"] = False
    write_atomically(path, (json.dumps(content) + "\n").encode())


def _read(path: str) -> dict[str, Any]:
    if Path(path).exists() and not Path(path).is_file():
        raise DataError(f"partition file {path} is not a regular file")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"partition file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"partition file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"partition file {path}: the top level must be a mapping")
    if content.get("version") != _VERSION:
        raise DataError(
            f"partition file {path}: version must be {_VERSION}, got {content.get('version')!r}"
        )
    return content


def _index_lists(path: str, content: dict[str, Any], kind: str) -> IndexLists:
    if content.get("listed") is False:
        raise DataError(
            f"partition file {path} lists no indices, because its run has very many clients; "
            f"save_partition(path) of the data module writes all of them"
        )
    lists = content.get(kind)
    if not isinstance(lists, list) or not all(isinstance(part, list) for part in lists):
        raise DataError(f"partition file {path}: {kind} must be a list with one list per client")
    for client, part in enumerate(lists):
        for index in part:
            # bool is an int in Python, and beyond 63 bits no index fits an array.
            if type(index) is not int or not 0 <= index < 2**63:
                raise DataError(
                    f"partition file {path}: {kind} of client {client} holds {index!r}, "
                    f"which is not an index"
                )
    return IndexLists.of([np.array(part, np.int64) for part in lists])
