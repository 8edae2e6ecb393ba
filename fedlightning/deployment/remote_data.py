"""Clients that are known by number and size only: what a deployment's server has of their data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from fedlightning.core.batches import Split
from fedlightning.datamodules.base import FederatedDataModule
from fedlightning.datamodules.client_data import ClientData
from fedlightning.datamodules.examples import Examples
from fedlightning.errors import ConfigError
from fedlightning.storage.csv_files import write_csv
from fedlightning.storage.run_layout import PARTITION_TABLE

__all__ = ["RemoteData", "only_sizes", "refuse_examples"]

Sizes = Mapping[int, Mapping[Split, int]]


def refuse_examples(who: str) -> NoReturn:
    """Refuse to look at examples where there are none.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"{who}: the examples are at the clients' nodes, and the server of a deployment has none; "
        "leave out what looks at examples at the server."
    )


class RemoteData(ClientData):
    """The numbers of examples of clients that are elsewhere.

    Args:
        sizes: Number of each client's examples, by client and split.
        num_classes: Number of classes; 0 for data without classes.
        schema: What an example looks like.

    Example:
        >>> data = RemoteData({0: {"train": 30}, 1: {"train": 50, "test": 9}}, 10)
        >>> data.size(1, "test"), data.size(0, "test")
        (9, 0)
    """

    rule = "at the clients' nodes"

    def __init__(self, sizes: Sizes, num_classes: int, schema: str = "") -> None:
        self.num_clients = len(sizes)
        self.num_classes = num_classes
        self._sizes = sizes
        self._schema = schema

    def size(self, client: int, split: Split) -> int:
        """Return the number of a client's examples."""
        return self._sizes[client].get(split, 0)

    def indices(self, client: int, split: Split) -> np.ndarray:
        """Return their places among the client's own."""
        return np.arange(self.size(client, split))

    def pool(self, client: int, split: Split) -> Examples:
        """Refuse to return examples."""
        refuse_examples(f"client {client}, split {split}")

    def digest(self) -> str:
        """Return a digest of sizes and schema."""
        facts = [sorted((c, sorted(sizes.items())) for c, sizes in self._sizes.items())]
        return hashlib.sha256(json.dumps([*facts, self._schema]).encode()).hexdigest()

    def summary(self) -> str:
        """Return a few readable lines."""
        total = sum(sizes.get("train", 0) for sizes in self._sizes.values())
        return f"{self.num_clients} clients with {total:,} training examples, {self.rule}"

    def write(self, folder: Path, dataset: str, names: Sequence[str] | None = None) -> None:
        """Write the sizes."""
        splits = ("train", "val", "test")
        rows = ([c, *(self.size(c, split) for split in splits)] for c in sorted(self._sizes))
        write_csv(folder / PARTITION_TABLE, ["client_id", *(f"num_{s}" for s in splits)], rows)


def only_sizes(data: FederatedDataModule, remote: RemoteData) -> None:
    """Give a data module numbers of examples in the place of examples, before it is set up.

    Args:
        data: The run's data module; it decides which clients train and are evaluated.
        remote: The numbers.
    """
    data._client_data = remote
    data._own_splits = _OnlySizes(remote)  # type: ignore[assignment]  # a property that is cached
    if not hasattr(data, "num_classes"):
        data.num_classes = remote.num_classes


class _OnlySizes:
    """The sizes of splits that a data module adds to those of training and test."""

    def __init__(self, remote: RemoteData) -> None:
        self._remote = remote

    def size(self, client: int, split: Split) -> int:
        return self._remote.size(client, split)

    def examples(self, client: int, split: Split) -> Examples:
        return self._remote.pool(client, split)
